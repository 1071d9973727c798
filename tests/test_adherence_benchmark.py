"""benchmarks/adherence.py: the table, the JSON line and the contact sheet, with other settings of the sampler."""

import json

import pytest

from benchmarks import adherence
from tests.systems import tiny


@pytest.fixture
def flags(tmp_path):
    tokenizer = tiny.save_tokenizer(tmp_path / "tokenizer")
    tiny.save_untrained(tmp_path / "model", **tiny.text_to_video(tokenizer))
    return [f"--checkpoint={tmp_path / 'model'}", "--prompts=2", "--seeds=2", f"--sheet={tmp_path / 'sheet.png'}"]


@pytest.mark.slow
def test_a_checkpoint_is_measured_with_the_settings_asked_for(flags, tmp_path, capsys):
    """The tests of the demo measure a model in the default run."""
    assert adherence.main([*flags, "--sample.guidance_scale=1", "--sample.num_inference_steps=2"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["sample"]["guidance_scale"], result["sample"]["num_inference_steps"]) == (1, 2)
    assert {row["n"] for row in result["adherence"]} == {4} and {row["n"] for row in result["tokenizer"]} == {2}
    assert {row["n"] for row in result["one_step"]} == {4}
    assert set(result["bounds"]) == {"true", "shuffled", "no text", "neighbors"}
    assert all(len(row) == 4 and min(row) > 0 for row in result["bounds"].values())
    assert "95 % interval" in shown.err and (tmp_path / "sheet.png").stat().st_size > 0


def test_a_setting_that_does_not_exist_is_one_line(flags, capsys):
    assert adherence.main([*flags, "--sample.sampler=best"]) == 2
    assert "sample.sampler=best: expected one of confidence" in capsys.readouterr().err

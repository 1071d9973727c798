"""benchmarks/adherence.py: the table, the JSON line and the contact sheet, with other settings of the sampler."""

import json

from benchmarks import adherence
from tests.systems import tiny


def test_a_checkpoint_is_measured_with_the_settings_asked_for(tmp_path, capsys):
    tokenizer = tiny.save_tokenizer(tmp_path / "tokenizer")
    tiny.save_untrained(tmp_path / "model", **tiny.text_to_video(tokenizer))
    flags = [f"--checkpoint={tmp_path / 'model'}", "--prompts=2", "--seeds=2", f"--sheet={tmp_path / 'sheet.png'}"]
    assert adherence.main([*flags, "--sample.guidance_scale=1", "--sample.num_inference_steps=2"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["sample"]["guidance_scale"], result["sample"]["num_inference_steps"]) == (1, 2)
    assert {row["n"] for row in result["adherence"]} == {4} and {row["n"] for row in result["tokenizer"]} == {2}
    assert {row["n"] for row in result["one_step"]} == {4}
    assert set(result["bounds"]) == {"true", "shuffled", "no text", "neighbors"}
    assert all(len(row) == 4 and min(row) > 0 for row in result["bounds"].values())
    assert "95 % interval" in shown.err and (tmp_path / "sheet.png").stat().st_size > 0
    assert adherence.main([*flags, "--sample.sampler=best"]) == 2
    assert "sample.sampler=best: expected one of confidence" in capsys.readouterr().err

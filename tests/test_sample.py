"""`motionaura sample`: files, sidecars, resuming, refusals."""

import dataclasses
import json
import os
import re
import typing

import numpy as np
import pytest
from PIL import Image

from motionaura_jax import sample
from motionaura_jax.core import memory
from motionaura_jax.core.errors import UserError
from motionaura_jax.data import media
from motionaura_jax.data.video import probe
from motionaura_jax.pipelines import outputs, text_to_video
from motionaura_jax.systems.text_to_video.recipe import SampleConfig
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from tests.systems import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tokenizer = tiny.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    folder = tmp_path_factory.mktemp("model")
    tiny.save_untrained(folder, **tiny.text_to_video(tokenizer))
    return folder


@pytest.fixture(scope="module", autouse=True)
def opened_once():
    """Open each checkpoint once, so that its programs are traced once.

    Tests that forbid device work share a pipeline of their own, which never places its weights.
    """
    original, opened = text_to_video.TextToVideo, {}

    def opening(*args):
        key = (*args, TextToVideoSystem.for_inference)
        if key not in opened:
            opened[key] = original(*args)
        return opened[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_to_video, "TextToVideo", opening)
        yield


def run(checkpoint, *flags):
    return sample.main([f"--checkpoint={checkpoint}", "--num_inference_steps=3", "--batch_size=2", *flags])


def test_the_command_writes_video_sidecar_and_sheet(checkpoint, tmp_path, capsys):
    output = tmp_path / "new" / "out.mp4"
    flags = ["--prompt=a red circle", "--negative_prompt=blue", "--fps=6", "--num_frames=6", "--height=12", "--seed=5"]
    flags += ["--sampler=halton", "--temperature=0.9", "--choice_temperature=2", "--top_k=8", "--top_p=0.9"]
    assert (
        run(checkpoint, f"--output={output}", *flags, "--guidance_scale=2.5", "--guidance_ramp=constant", "--json") == 0
    )
    result = json.loads(capsys.readouterr().out)
    info = probe(output)
    assert (info.frames, info.height, info.width, info.fps) == (6, 12, 16, 6.0)
    record = json.loads(output.with_suffix(".json").read_text())
    expected = {"prompt": "a red circle", "negative_prompt": "blue", "seed": 5, "num_inference_steps": 3, "fps": 6.0}
    expected |= {"guidance_scale": 2.5, "sampler": "halton", "top_k": 8, "top_p": 0.9, "temperature": 0.9, "height": 12}
    expected["guidance_ramp"] = "constant"
    assert {key: record[key] for key in expected} == expected
    assert len(record["checkpoint_hash"]) == len(record["latent_space"]) == 16 and record["versions"]["jax"]
    assert result["outputs"] == [str(output)] and result["drawn"] == 1
    assert (output.parent / "out_sheet.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "written"), [("o.gif", "o.gif"), ("o.webp", "o.webp"), ("o.npz", "o.npz"), ("o.png", "o_0003.png")]
)
def test_the_suffix_chooses_the_format(checkpoint, tmp_path, name, written):
    assert run(checkpoint, "--prompt=a red circle", f"--output={tmp_path / name}") == 0
    assert (tmp_path / written).stat().st_size > 0


def test_several_videos_of_a_prompt_differ_and_the_first_stays(checkpoint, tmp_path):
    flags = ["--prompt=a green star", "--num_videos_per_prompt=3"]
    assert run(checkpoint, *flags, f"--output={tmp_path / 'many.npz'}") == 0
    assert run(checkpoint, "--prompt=a green star", f"--output={tmp_path / 'one.npz'}") == 0
    many = [np.load(tmp_path / f"many_0{number}.npz")["video"] for number in range(3)]
    np.testing.assert_array_equal(many[0], np.load(tmp_path / "one.npz")["video"])
    assert (many[0] != many[1]).any()


def test_a_prompts_file_resumes_and_leaves_out_broken_lines(checkpoint, tmp_path, capsys, caplog):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red circle"}\nbroken\n{"prompt": "a blue square"}\n')
    flags = [f"--prompts_file={prompts}", f"--output={tmp_path / 'o.npz'}", "--json"]
    assert run(checkpoint, *flags) == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == 2 and "line 2 is left out" in caplog.text
    first = np.load(tmp_path / "o_0001.npz")["video"]
    (tmp_path / "o_0001.npz").unlink()
    assert run(checkpoint, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["drawn"], result["kept"]) == (1, 1)
    np.testing.assert_array_equal(np.load(tmp_path / "o_0001.npz")["video"], first)
    assert run(checkpoint, *flags, "--seed=1") == 2
    assert "was generated with other settings" in capsys.readouterr().err
    assert run(checkpoint, *flags, "--seed=1", "--overwrite") == 0


def test_the_same_command_again_keeps_what_it_drew(checkpoint, tmp_path, capsys):
    flags = ["--prompt=a red circle", f"--output={tmp_path / 'o.mp4'}", "--json"]
    results = []
    for place in (checkpoint, checkpoint / "checkpoints" / "0"):  # the same weights under another path
        assert run(place, *flags) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [(result["drawn"], result["kept"]) for result in results] == [(1, 0), (0, 1)]


def test_overwriting_leaves_no_frame_of_a_longer_video(checkpoint, tmp_path):
    flags = ["--prompt=a red circle", f"--output={tmp_path / 'o.png'}"]
    assert run(checkpoint, *flags, "--num_frames=4") == 0
    assert run(checkpoint, *flags, "--num_frames=2", "--overwrite") == 0
    assert sorted(path.name for path in tmp_path.glob("o_0*.png")) == ["o_0000.png", "o_0001.png"]


@pytest.mark.parametrize("name", ["write_video", "write_json"])
@pytest.mark.parametrize("suffix", [".npz", ".png"])
def test_a_call_stopped_between_two_files_goes_on(checkpoint, tmp_path, capsys, monkeypatch, name, suffix):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green star\n")
    flags = [f"--prompts_file={prompts}", f"--output={tmp_path / f'o{suffix}'}", "--json"]
    original, calls = getattr(media, name), []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(media, name, stopped)
        assert run(checkpoint, *flags) == 130
    capsys.readouterr()
    assert run(checkpoint, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["drawn"], result["kept"]) == (2, 1)


@pytest.mark.parametrize("suffix", [".npz", ".png", ".mp4", ".gif", ".webp"])
def test_a_resumed_call_keeps_the_sheet_whole(checkpoint, tmp_path, suffix):
    prompts, sheet = tmp_path / "prompts.txt", tmp_path / "o_sheet.png"
    prompts.write_text("a red circle\na blue square\n")
    flags = [f"--prompts_file={prompts}", f"--output={tmp_path / f'o{suffix}'}"]
    assert run(checkpoint, *flags) == 0
    whole = np.asarray(Image.open(sheet)).astype(int)
    missing = next(path for path in sorted(tmp_path.iterdir()) if path.match(f"o_0002*{suffix}"))
    missing.unlink()
    sheet.write_bytes(b"")
    assert run(checkpoint, *flags) == 0
    again = np.asarray(Image.open(sheet)).astype(int)
    assert again.shape == whole.shape and np.abs(again - whole).mean() < (
        8 if suffix in (".mp4", ".gif", ".webp") else 1e-9
    )


def test_a_sheet_can_move_and_has_a_name_of_its_own(checkpoint, tmp_path, capsys):
    flags = ["--prompt=a red circle", "--num_videos_per_prompt=2", f"--output={tmp_path / 'o.webp'}"]
    assert run(checkpoint, *flags, f"--sheet={tmp_path / 'all.webp'}") == 0
    with Image.open(tmp_path / "all.webp") as sheet:
        assert sheet.n_frames > 1 and sheet.width == 2 * 192 + 3 * 8
    assert not (tmp_path / "o_sheet.png").exists()
    assert run(checkpoint, *flags, f"--sheet={tmp_path / 'all.jpg'}") == 2
    assert re.search(
        r"all\.jpg: cannot write suffix '\.jpg'.*; end the name in \.png \.webp \.gif$", capsys.readouterr().err, re.M
    )
    assert run(checkpoint, *flags, f"--sheet={tmp_path / 'o_00.webp'}") == 2
    assert "o_00.webp: is the name of a video and of the sheet; choose another --sheet" in capsys.readouterr().err


def test_an_animation_that_stands_still_reads_back_whole(tmp_path):
    video = np.zeros((5, 16, 24, 3), np.uint8)
    video[3:] = 255
    for clip in (video, video[:3]):  # equal neighbors are stored once
        path = tmp_path / f"{len(clip)}.webp"
        media.write_video(path, clip, 8.0)
        record = {"num_frames": len(clip), "height": 16, "width": 24, "fps": 8.0}
        target = outputs.Target(job=None, path=path, label="", record=record)
        assert np.abs(outputs._read(target).astype(int) - clip).max() < 4
        longer = dataclasses.replace(target, record={**record, "width": 8})
        with pytest.raises(UserError, match=r"\.webp: is damaged \(holds"):
            outputs._read(longer)


@pytest.mark.parametrize("name", ["config.json", "config_sheet.png"])
def test_files_beside_the_output_are_kept_too(checkpoint, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"mine")
    flags = ["--prompt=a red circle", f"--output={tmp_path / 'config.npz'}"]
    assert run(checkpoint, *flags) == 2 and (tmp_path / name).read_bytes() == b"mine"
    assert f"{name}: exists already; choose another name or add --overwrite" in capsys.readouterr().err
    assert run(checkpoint, *flags, "--overwrite") == 0 and (tmp_path / name).read_bytes() != b"mine"


def test_a_line_has_the_same_video_however_many_are_drawn_of_each(checkpoint, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    assert run(checkpoint, f"--prompts_file={prompts}", f"--output={tmp_path / 'one.npz'}") == 0
    several = [f"--prompts_file={prompts}", "--num_videos_per_prompt=2", f"--output={tmp_path / 'two.npz'}"]
    assert run(checkpoint, *several) == 0
    one, two = (np.load(tmp_path / name)["video"] for name in ("one_0002.npz", "two_0002_00.npz"))
    np.testing.assert_array_equal(one, two)


def test_flags_and_settings_agree():
    flags = vars(sample._parser().parse_args(["--prompt=a"]))
    assert SampleConfig().sampling.keys() - flags.keys() == {"schedule"}  # a setting without its own flag
    assert typing.get_args(typing.get_type_hints(SampleConfig)["sampler"]) == sample.SAMPLERS


def test_longer_videos_and_revised_tokens(checkpoint, tmp_path):
    flags = [
        "--prompt=a red circle",
        "--num_frames=8",
        "--window_frames=4",
        "--remask=1",
        f"--output={tmp_path / 'o.npz'}",
    ]
    assert run(checkpoint, *flags) == 0
    assert np.load(tmp_path / "o.npz")["video"].shape == (8, 16, 16, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=a", "--output=o.avi"], "cannot write suffix"),
        (["--prompt=a", "--output=o.mp4", "--num_frames=7"], "the nearest is 6 or 8"),
        (["--prompt=a", "--output=o.mp4", "--window_frames=5"], "--window_frames=5: this model makes 2, 4, 6"),
        (["--prompt=a", "--output=o.mp4", "--checkpoint=nowhere"], "nowhere: no such checkpoint"),
        (["--prompts_file=absent.txt", "--output=o.mp4"], "absent.txt: cannot be read"),
        (["--prompt=a", "--output=o.mp4", "--sampler=halton", "--remask=2"], "remask=2"),
        (["--prompt=a", "--output=o.mp4", "--tokenizer=gone"], "give its folder with --tokenizer"),
    ],
)
def test_bad_input_is_one_line(checkpoint, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextToVideoSystem, "for_inference", None)  # the first device work
    assert run(checkpoint, *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "usual"),
    [("--num_frames", "2"), ("--height", "4"), ("--width", "4"), ("--batch_size", "1")],
)
def test_a_size_beyond_the_memory_names_the_largest_that_fits(checkpoint, tmp_path, capsys, monkeypatch, flag, usual):
    monkeypatch.setattr(memory, "total", lambda: 2**22)
    monkeypatch.setattr(TextToVideoSystem, "for_inference", None)  # the first device work
    flags = ["--prompt=a", f"--output={tmp_path / 'o.npz'}"]
    assert run(checkpoint, *flags, f"{flag}=8192") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(rf"error: {flag}=8192: needs at least .* GiB.*; the largest value that fits is (\d+)", error)
    assert found and not list(tmp_path.iterdir())
    assert int(usual) <= int(found[1]) < 8192 and int(found[1]) % int(usual) == 0
    assert run(checkpoint, *flags, f"{flag}={int(found[1]) + int(usual)}") == 2
    assert capsys.readouterr().err.endswith(f"the largest value that fits is {found[1]}\n")


def test_too_many_videos_are_one_line(checkpoint, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green star\n")
    assert run(checkpoint, f"--prompts_file={prompts}", "--num_videos_per_prompt=50000") == 2
    assert (
        "3 prompts would give more than 100000 videos; the largest value that fits is 33333" in capsys.readouterr().err
    )


@pytest.mark.parametrize("suffix", [".npz", ".png"])
@pytest.mark.parametrize("sidecar", ["[1]", "[" * 10_000, '{"num_frames": "x"}', '{"num_frames": 1e9}', "pipe", "link"])
def test_a_sidecar_from_elsewhere_is_kept_whatever_it_is(checkpoint, tmp_path, capsys, monkeypatch, sidecar, suffix):
    monkeypatch.setattr(TextToVideoSystem, "for_inference", None)
    place = tmp_path / "o.json"
    if sidecar == "pipe":
        os.mkfifo(place)
    elif sidecar == "link":
        place.symlink_to("/dev/zero")
    else:
        place.write_text(sidecar.replace("{", '{"checkpoint_hash": "a", '))
    assert run(checkpoint, "--prompt=a", f"--output={tmp_path / 'o'}{suffix}") == 2
    assert "o.json: exists already" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == [
        "o.json"
    ]


def test_a_video_of_another_size_under_our_sidecar_is_damaged(checkpoint, tmp_path, capsys):
    flags = ["--prompt=a red circle", f"--output={tmp_path / 'o.npz'}"]
    assert run(checkpoint, *flags) == 0
    (tmp_path / "o_sheet.png").unlink()
    for video in (np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 1), object)):
        np.savez_compressed(tmp_path / "o.npz", video=video)
        assert run(checkpoint, *flags) == 2
        assert "o.npz: is damaged (holds " in capsys.readouterr().err


@pytest.mark.parametrize("blocked", ["folder.npz", "file/o.npz", "folder_sheet"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    checkpoint, tmp_path, capsys, monkeypatch, blocked
):
    monkeypatch.setattr(TextToVideoSystem, "for_inference", None)  # the first device work
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "folder_sheet_sheet.png").mkdir()
    (tmp_path / "file").touch()
    output = tmp_path / blocked
    output = output if output.suffix else output.with_name(f"{blocked}.npz")
    assert run(checkpoint, "--prompt=a", f"--output={output}", "--overwrite") == 2
    error = capsys.readouterr().err
    assert "is not a file; remove it" in error or "cannot be written (not a directory)" in error
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_frames=1000000000", "must be at least 1 and at most 65536"),
        ("--height=8000000", "must be at least 1 and at most 16384"),
        ("--batch_size=1000000000", "must be at least 1 and at most 65536"),
        (f"--num_videos_per_prompt={10**23}", "must be at least 1 and at most 100000"),
        ("--fps=1e300", "must be at least 0.01 and at most 1000"),
        ("--num_inference_steps=1000000000", "must be at least 1 and at most 100000"),
        ("--top_k=10000000000", "must be at least 1 and at most 2147483647"),
        ("--temperature=1e300", "must be at least 0 and at most 1e+30"),
        ("--negative_prompt=\udcff", "is not UTF-8 text"),
        ("--output=~nobody-of-this-name/o.mp4", "there is no such home folder"),
        ("--sampler=greedy", "invalid choice: 'greedy'"),
        ("--num_inference_steps=-3", "-3: must be at least 1"),
        ("--guidance_scale=0.5", "0.5: must be at least 1"),
        ("--temperature=hot", "'hot' is not a valid number"),
        ("--temperature=nan", "nan: must be at least 0"),
        ("--fps=inf", "inf: must be at least 0.01 and at most 1000"),
        ("--top_p=5", "5: must be above 0 and at most 1"),
        ("--seed=4294967296", "must be at least 0 and below 2^32"),
        ("--guidance_scal=3", "did you mean '--guidance_scale'"),
        ("--prompts_file=also.txt", "not allowed with argument --prompt"),
    ],
)
def test_a_bad_flag_ends_at_once(capsys, flag, message):
    with pytest.raises(SystemExit) as error:
        sample.main(["--checkpoint=x", "--prompt=a", "--output=o.mp4", flag])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_an_existing_output_is_kept_unless_told_otherwise(checkpoint, tmp_path, capsys):
    output = tmp_path / "o.npz"
    output.write_bytes(b"mine")
    flags = ["--prompt=a red circle", f"--output={output}"]
    assert run(checkpoint, *flags) == 2 and output.read_bytes() == b"mine"
    assert "exists already; choose another name or add --overwrite" in capsys.readouterr().err
    assert run(checkpoint, *flags, "--overwrite") == 0 and output.read_bytes() != b"mine"

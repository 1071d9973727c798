"""From a checkpoint to a reconstructed file: sizes, formats, tiles, refusals."""

import json

import jax
import numpy as np
import pytest

from motionaura_jax import reconstruct
from motionaura_jax.data.media import write_video
from motionaura_jax.data.video import probe, read_video
from motionaura_jax.errors import UserError
from motionaura_jax.pipelines.reconstruct import reconstruct as reconstruct_frames
from motionaura_jax.weights.load import load, load_tokenizer
from tests.systems.tiny import save_tokenizer


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A checkpoint of an untrained tokenizer."""
    return save_tokenizer(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of an odd size that no stride divides."""
    path = tmp_path_factory.mktemp("clips") / "odd.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (5, 19, 23, 3), dtype=np.uint8)
    write_video(path, frames, 10.0, lossless=True)
    return path


def test_the_command_writes_the_source_size_and_rate_and_one_json_line(workdir, clip, tmp_path, capsys):
    output = tmp_path / "recon.mp4"
    status = reconstruct.main([f"--checkpoint={workdir}", f"--input={clip}", f"--output={output}", "--json"])
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert status == 0 and captured.out.count("\n") == 1
    info = probe(output)
    assert (result["frames"], result["height"], result["width"]) == (5, 19, 23)
    assert abs(info.fps - 10.0) < 1e-6 and len(read_video(output)[0]) == 5
    assert (info.height, info.width) == (20, 24)  # yuv420p holds even sizes only
    assert {"psnr", "psnr_continuous", "ssim", "ssim_continuous", "latent_space"} <= result.keys()
    assert result["tokens"] == 3 * 5 * 6
    assert (tmp_path / "recon_sheet.png").stat().st_size > 0


@pytest.mark.parametrize(("name", "written"), [("r.gif", "r.gif"), ("r.npz", "r.npz"), ("r.png", "r_0004.png")])
def test_the_suffix_chooses_the_format(workdir, clip, tmp_path, name, written):
    assert reconstruct.main([f"--checkpoint={workdir}", f"--input={clip}", f"--output={tmp_path / name}"]) == 0
    assert (tmp_path / written).stat().st_size > 0


def test_an_image_is_a_video_of_one_frame(workdir, tmp_path):
    source = tmp_path / "image.png"
    write_video(source, np.full((1, 20, 30, 3), 99, np.uint8), 1.0)
    assert reconstruct.main([f"--checkpoint={workdir}", f"--input={source}", f"--output={tmp_path / 'o.png'}"]) == 0
    assert read_video(tmp_path / "o.png")[0].shape == (1, 20, 30, 3)


def test_tiles_agree_with_the_whole_away_from_seams(workdir):
    tokenizer, _ = load_tokenizer(workdir)
    video = np.random.default_rng(1).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    whole = reconstruct_frames(tokenizer, video, tile=(8, 32, 32))
    tiles = reconstruct_frames(tokenizer, video, tile=(4, 32, 32))
    assert tiles.frames.shape == whole.frames.shape == video.shape
    assert np.abs(tiles.continuous.astype(int) - whole.continuous).mean() < 25


def test_tokens_decode_to_what_the_values_decode_to(workdir):
    tokenizer, _ = load_tokenizer(workdir)
    video = np.random.default_rng(2).uniform(-1, 1, (1, 4, 16, 16, 3)).astype(np.float32)
    latent = jax.jit(lambda t, v: t.encode(v))(tokenizer, video)
    only_tokens = type(latent)(tokens=latent.tokens, size=latent.size, latent_space=latent.latent_space)
    decode = jax.jit(lambda t, x: t.decode(x))
    np.testing.assert_allclose(decode(tokenizer, only_tokens), decode(tokenizer, latent), atol=1e-5)


def test_a_latent_of_another_tokenizer_is_refused(workdir):
    tokenizer, _ = load_tokenizer(workdir)
    latent = tokenizer.encode(np.zeros((1, 2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="latent of 'other' given to a tokenizer of"):
        tokenizer.decode(type(latent)(tokens=latent.tokens, size=latent.size, latent_space="other"))


def test_the_fingerprint_follows_weights_and_not_their_implementation(workdir):
    first, second = (load_tokenizer(workdir)[0].latent_space for _ in range(2))
    assert first == second and len(first) == 16


def test_another_system_is_refused(workdir):
    with pytest.raises(UserError, match="holds a mbq_vae; a text_to_video is needed here"):
        load(workdir, "text_to_video")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "absent.mp4"}, r"absent\.mp4"),
        ({"output": "out.avi"}, "cannot write suffix"),
        ({"checkpoint": "nowhere"}, "nowhere: no such checkpoint"),
    ],
)
def test_bad_input_is_one_line(workdir, clip, tmp_path, capsys, change, message):
    flags = {"checkpoint": workdir, "input": clip, "output": tmp_path / "o.mp4", **change}
    assert reconstruct.main([f"--{name}={value}" for name, value in flags.items()]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message.replace("\\", "") in errors[0]
    assert not list(tmp_path.glob("o*"))


def test_an_existing_output_is_kept_unless_told_otherwise(workdir, clip, tmp_path):
    output = tmp_path / "o.npz"
    output.write_bytes(b"mine")
    flags = [f"--checkpoint={workdir}", f"--input={clip}", f"--output={output}"]
    assert reconstruct.main(flags) == 2 and output.read_bytes() == b"mine"
    assert reconstruct.main([*flags, "--overwrite"]) == 0 and output.read_bytes() != b"mine"

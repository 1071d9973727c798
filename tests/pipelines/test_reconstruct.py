"""From a checkpoint to a reconstructed file: sizes, formats, tiles, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax import reconstruct
from motionaura_jax.core.errors import UserError
from motionaura_jax.data.media import write_video
from motionaura_jax.data.video import probe, read_video
from motionaura_jax.models.autoencoders.tokenizer import fingerprint
from motionaura_jax.pipelines import decoding
from motionaura_jax.pipelines import reconstruct as pipeline
from motionaura_jax.systems.loading import load, load_autoencoder
from tests.systems.tiny import save_tokenizer


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a checkpoint of an untrained tokenizer."""
    return save_tokenizer(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return a video with odd sizes that no stride divides."""
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
    assert (info.height, info.width) == (20, 24)  # yuv420p requires even sizes
    assert {"psnr", "psnr_continuous", "ssim", "ssim_continuous", "latent_space"} <= result.keys()
    assert result["tokens"] == 3 * 5 * 6
    assert (tmp_path / "recon_sheet.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "written"),
    [("r.gif", ["r.gif"]), ("r.npz", ["r.npz"]), ("r.png", [f"r_{index:04d}.png" for index in range(5)])],
)
def test_the_suffix_chooses_the_format_and_the_result_names_the_files(workdir, clip, tmp_path, capsys, name, written):
    flags = [f"--checkpoint={workdir}", f"--input={clip}", f"--output={tmp_path / name}", "--json"]
    assert reconstruct.main(flags) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == [str(tmp_path / file) for file in written]
    assert all((tmp_path / file).stat().st_size > 0 for file in written)


def test_frames_under_the_window_of_ssim_have_none(workdir, tmp_path, capsys):
    write_video(tmp_path / "small.gif", np.full((2, 10, 32, 3), 99, np.uint8), 8.0)
    flags = [f"--checkpoint={workdir}", f"--input={tmp_path / 'small.gif'}", f"--output={tmp_path / 'o.gif'}", "--json"]
    assert reconstruct.main(flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ssim"] is None and result["ssim_continuous"] is None and result["psnr"] > 0


def test_an_image_is_a_video_of_one_frame(workdir, tmp_path):
    source = tmp_path / "image.png"
    write_video(source, np.full((1, 20, 30, 3), 99, np.uint8), 1.0)
    assert reconstruct.main([f"--checkpoint={workdir}", f"--input={source}", f"--output={tmp_path / 'o.png'}"]) == 0
    assert read_video(tmp_path / "o.png")[0].shape == (1, 20, 30, 3)


def test_tiles_equal_the_whole_away_from_seams(workdir):
    """Statistics are per frame and tiles span the frame, so only frames within reach of a seam may differ."""
    tokenizer, _ = load_autoencoder(workdir)
    video = np.random.default_rng(1).integers(0, 255, (32, 16, 16, 3), dtype=np.uint8)
    whole, one_tile, tiles = (
        pipeline.reconstruct(tokenizer, video, tile=t) for t in (None, (32, 16, 16), (24, 16, 16))
    )
    difference = np.abs(tiles.continuous.astype(int) - whole.continuous).max((1, 2, 3))
    # Tiles of 12 latent cells begin at cells 0 and 4 of 16.  A border reaches 2 cells in the encoder and 2 in the decoder.
    assert difference[:4].max() <= 1 and difference[-4:].max() <= 1 < difference.max()
    np.testing.assert_array_equal(one_tile.continuous, whole.continuous)
    np.testing.assert_array_equal(one_tile.tokens, whole.tokens)


def test_only_tiles_and_latents_go_to_the_device(workdir, monkeypatch):
    seen = []

    def spy(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: seen.append(args) or real(*args, **kwargs))

    for name in ("tiled_encode", "_encode_piece"):
        spy(pipeline, name)
    for name in ("crop", "_decode_values"):
        spy(decoding, name)
    tokenizer, _ = load_autoencoder(workdir)
    pipeline.reconstruct(tokenizer, np.zeros((8, 16, 16, 3), np.uint8), tile=(4, 16, 16))
    videos = [x for args in seen for x in args if getattr(x, "ndim", 0) == 5]
    whole = [x for x in videos if x.shape[1:] == (8, 16, 16, 3)]
    assert len(whole) == 3 and all(isinstance(x, np.ndarray) for x in whole)


def test_tokens_decode_to_what_the_values_decode_to(workdir):
    tokenizer, _ = load_autoencoder(workdir)
    video = np.random.default_rng(2).uniform(-1, 1, (1, 4, 16, 16, 3)).astype(np.float32)
    latent = jax.jit(lambda t, v: t.encode(v))(tokenizer, video)
    only_tokens = type(latent)(tokens=latent.tokens, size=latent.size, latent_space=latent.latent_space)
    decode = jax.jit(lambda t, x: t.decode(x))
    np.testing.assert_allclose(decode(tokenizer, only_tokens), decode(tokenizer, latent), atol=1e-5)


def test_a_latent_of_another_tokenizer_is_refused(workdir):
    tokenizer, _ = load_autoencoder(workdir)
    latent = tokenizer.encode(np.zeros((1, 2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="latent of 'other' given to an autoencoder of"):
        tokenizer.decode(type(latent)(tokens=latent.tokens, size=latent.size, latent_space="other"))


def test_the_fingerprint_follows_weights_and_not_their_implementation(workdir):
    tokenizer, _ = load_autoencoder(workdir)
    config, params, extra = tokenizer.config, tokenizer.params, tokenizer.extra
    assert len(tokenizer.latent_space) == 16
    assert fingerprint(config, params, extra) == load_autoencoder(workdir)[0].latent_space == tokenizer.latent_space
    for key in ("conv_impl", "depthwise_impl", "transpose_impl", "nearest_impl"):
        other = "argmin" if key == "nearest_impl" else "lax"
        assert fingerprint(dataclasses.replace(config, **{key: other}), params, extra) == tokenizer.latent_space
    assert fingerprint(dataclasses.replace(config, l2=False), params, extra) != tokenizer.latent_space
    leaves, tree = jax.tree.flatten(params)
    for index in range(len(leaves)):
        moved = [
            jnp.asarray(leaf).at[(0,) * leaf.ndim].add(0.5) if i == index else leaf for i, leaf in enumerate(leaves)
        ]
        assert fingerprint(config, jax.tree.unflatten(tree, moved), extra) != tokenizer.latent_space


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


def test_an_existing_contact_sheet_is_kept_unless_told_otherwise(workdir, clip, tmp_path, capsys):
    sheet = tmp_path / "o_sheet.png"
    sheet.write_bytes(b"mine")
    flags = [f"--checkpoint={workdir}", f"--input={clip}", f"--output={tmp_path / 'o.npz'}"]
    assert reconstruct.main(flags) == 2 and sheet.read_bytes() == b"mine"
    assert "o_sheet.png: exists already; choose another name or add --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "o.npz").exists()
    assert reconstruct.main([*flags, "--overwrite"]) == 0 and sheet.read_bytes() != b"mine"

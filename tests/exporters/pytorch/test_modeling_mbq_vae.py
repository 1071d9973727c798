"""The exported tokenizer matches ours, for every quantizer and every setting that affects the output."""

import jax
import numpy as np
import pytest

from motionaura_jax.core.types import Latent
from motionaura_jax.models.autoencoders.config import preset
from motionaura_jax.models.autoencoders.tiling import pad
from tests.exporters.pytorch import parity
from tests.systems.tiny import TOKENIZER

torch = pytest.importorskip("torch")

SMALL = {**TOKENIZER, "codebook_size": 64, "latent_dim": 4, "norm": "group"}
BLOCKS = {"enc_mb": (1, 0), "enc_inc": (0, 1), "dec_mb": (0, 1), "dec_inc": (1, 0)}
CASES = {
    "vq": {},
    "vq_euclidean": {"l2": False},
    "vq_ema": {"quantizer": "vq_ema"},
    "fsq": {"quantizer": "fsq", "fsq_levels": (8, 5, 5, 4)},
    "lfq": {"quantizer": "lfq"},
    "none": {"quantizer": "none"},
    "blocks": BLOCKS,
    "blocks_causal": {**BLOCKS, "causal": True, "upsample": "subpixel"},
    "causal": {"causal": True},
    "frame_gn": {**BLOCKS, "norm": "frame_gn"},
    "se_after": {**BLOCKS, "se_pos": "after"},
    "lead_factor": {**BLOCKS, "lead": "factor"},
    "inception": {**BLOCKS, "inception_width": 0.5, "inception_final": 1},
    "subpixel": {"upsample": "subpixel"},
    "still": {"t_stride": 1},
    "patch": {"stem": "patch"},
    "patch_causal": {"stem": "patch", "stem_time": 2, "t_stride": 4, "causal": True, "upsample": "subpixel"},
    "haar": {**BLOCKS, "stem": "haar", "stem_time": 2, "stem_space": 4},
    "haar_causal": {"stem": "haar", "stem_time": 4, "stem_space": 4, "t_stride": 4, "causal": True},
}


def config_of(**changes):
    values = {**SMALL, **changes}
    return preset("tiny", **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def video_of(size, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def first(video):
    return torch.from_numpy(video).movedim(-1, 1)


def last(tensor):
    return tensor.detach().movedim(1, -1).numpy()


def assert_equal(config, size):
    ours = parity.tokenizer(config)
    theirs = parity.torch_tokenizer(ours)
    video = video_of(size)
    features = jax.jit(lambda v: ours.features(pad(ours.geometry, v)[0]))(video)
    wanted = ours.bottleneck(features, size, quantized=False)
    latent, found = jax.jit(ours.encode)(video), theirs.encode(first(video))
    assert found.size == latent.size == size
    with torch.inference_mode():
        parity.assert_close(last(theirs.quantizer.continuous(theirs.features(first(video)))), wanted.values)
        if config.quantizer != "none":
            assert (found.tokens.numpy() == np.asarray(latent.tokens)).mean() >= 0.9999
            decoded = theirs.decode_tokens(torch.from_numpy(np.array(latent.tokens)), size)
            again = theirs.quantizer.values(torch.from_numpy(np.array(latent.tokens)))
            parity.assert_close(last(again), latent.values, 1e-6)
        else:
            assert found.tokens is None
            decoded = theirs.decode(first(np.array(latent.values)), size)
    parity.assert_close(last(decoded), jax.jit(ours.decode)(latent))
    return ours, theirs, video


@pytest.mark.parametrize("case", CASES)
def test_a_tokenizer_computes_what_ours_does(case):
    assert_equal(config_of(**CASES[case]), (5, 9, 14))


@pytest.mark.parametrize("size", [(4, 8, 8), (1, 4, 4), (3, 5, 30)])
def test_videos_of_any_size_are_padded_alike(size):
    assert_equal(config_of(), size)


def test_the_head_that_finds_the_masked_frame():
    for causal in (False, True):
        ours, theirs, _ = assert_equal(config_of(causal=causal), (5, 8, 8))
        z = np.random.default_rng(1).normal(size=(2, 3, 4, 4, 4)).astype(np.float32)
        wanted = jax.jit(lambda z: ours.apply("mfi_logits", z))(z)  # noqa: B023
        parity.assert_close(theirs.mfi_logits(first(z)).detach(), wanted)


def test_settings_from_before_the_stem_was_a_choice_still_load():
    from motionaura_jax.exporters.pytorch.modeling_mbq_vae import MBQVAE

    ours = parity.tokenizer(config_of())
    weights = parity.torch_tokenizer(ours).state_dict()
    values = parity.settings.tokenizer_settings(ours.config)
    old = {name: value for name, value in values.items() if not name.startswith("stem")}
    again = MBQVAE.filled(old, weights, torch.float32)
    assert again.config == MBQVAE.Config(**values)


def test_values_of_codes_outside_of_a_codebook_are_refused():
    theirs = parity.torch_tokenizer(parity.tokenizer(config_of(quantizer="none")))
    with pytest.raises(ValueError, match="has no codes"):
        theirs.decode_tokens(torch.zeros(1, 1, 1, 1, dtype=torch.long))


def test_halves_are_computed_in_halves():
    ours = parity.tokenizer(config_of())
    theirs = parity.torch_tokenizer(ours).to(torch.bfloat16)
    video = video_of((4, 8, 8))
    wanted = jax.jit(ours.encode)(video)
    decoded = theirs.decode_tokens(torch.from_numpy(np.array(wanted.tokens)), wanted.size)
    assert decoded.dtype == torch.float32
    parity.assert_close(last(decoded), jax.jit(ours.decode)(Latent(tokens=wanted.tokens, size=wanted.size)), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "small", "base", "paper", "paper_f1"])
def test_presets_at_full_width(name):
    assert_equal(preset(name), (4, 32, 48))

"""The exported denoiser matches ours, plain and folded, for every transform and every kind of block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.types import Cond
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig, preset
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.layers.config import LoraConfig
from tests.exporters.pytorch import parity

torch = pytest.importorskip("torch")

BASE = {"vocab_size": 11, "width": 32, "heads": 2, "blocks": 2, "text_dim": 6, "text_len": 5}
LORA = LoraConfig(rank=5, targets=("q", "k", "v", "o"))
KINDS = ("re_fft2", "hartley", "hartley3d", "seq_hartley", "filter", "none")
CASES = {
    **{kind: {"spectral": kind} for kind in KINDS},
    **{f"{kind}_paper": {"spectral": kind, "residual": "paper", "rope": "flat1d"} for kind in KINDS},
    **{f"{kind}_masked_text": {"spectral": kind, "cross_spectral": False} for kind in KINDS[:2]},
    "lowrank256": {"adaln": "lowrank256"},
    "perblock": {"adaln": "perblock", "residual": "paper"},
    "sinusoidal": {"rope": "sinusoidal", "abs_pos": False},
    "axial": {"spectral": "none", "rope": "axial", "time_cond": False},
    "lora_re_fft2": {"lora": LORA},
    "lora_filter": {"spectral": "filter", "lora": LORA, "residual": "paper"},
    "lora_hartley3d": {"spectral": "hartley3d", "lora": LoraConfig(rank=7, activation="none")},
    "options": {"learned_null": False, "head_norm": True, "output_bias": True},
    "odd": {"width": 31, "heads": 3, "attention_ratio": 24 / 31, "mlp_ratio": 2.5},
}
TIE = 1e-3


def inputs(config, grid, batch=3):
    """Return tokens, level, frame rate, text and its mask; one sample has no text and one a short text."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size + 1, (batch, *grid)).astype(np.int32)
    text = rng.normal(size=(batch, config.text_len - 1, config.text_dim)).astype(np.float32)
    mask = np.arange(config.text_len - 1) < np.array([0, 2, 4])[:batch, None]
    return tokens, rng.uniform(0, 1, batch).astype(np.float32), np.array([8.0, 24.0, 7.0], "f4")[:batch], text, mask


def ours(config, params, tokens, level, fps, text, mask):
    cond = Cond(tokens=text, token_mask=mask, scalars={"fps": jnp.asarray(fps)})
    return jax.jit(SpectralTransformer(config).apply)({"params": params}, tokens, level, cond).dense()


def assert_equal(config, grid, batch=3):
    params = parity.denoiser(config)
    arrays = inputs(config, grid, batch)
    wanted = np.asarray(ours(config, params, *arrays))
    network = parity.torch_denoiser(config, params)
    tensors = [torch.from_numpy(array) for array in arrays]
    for folded in (False, True):
        with torch.inference_mode():
            found = (network.fold() if folded else network)(*tensors).numpy()
        parity.assert_close(found, wanted)
        assert_same_choice(found, wanted)
    return network, tensors, wanted


def assert_same_choice(found, wanted):
    """Assert that the argmax agrees for at least 99.9 %, and differs only in near ties."""
    differ = found.argmax(-1) != wanted.argmax(-1)
    best = np.sort(wanted, -1)
    assert differ.mean() <= 1e-3 and (best[..., -1] - best[..., -2])[differ].max(initial=0) < TIE


@pytest.mark.parametrize("case", CASES)
def test_a_denoiser_computes_what_ours_does(case):
    assert_equal(SpectralTransformerConfig(**{**BASE, **CASES[case]}), (2, 3, 4))


@pytest.mark.parametrize("case", ["re_fft2", "filter", "odd", "lora_re_fft2"])
@pytest.mark.parametrize("grid", [(1, 3, 3), (1, 1, 1)])
def test_odd_numbers_of_tokens_are_folded_too(case, grid):
    assert_equal(SpectralTransformerConfig(**{**BASE, **CASES[case]}), grid)


@pytest.mark.parametrize("kind", ["re_fft2", "none"])
def test_the_null_text_is_what_a_text_without_words_is(kind):
    config = SpectralTransformerConfig(**{**BASE, "spectral": kind})
    network, (tokens, level, fps, *_), wanted = assert_equal(config, (2, 2, 2))
    with torch.inference_mode():
        parity.assert_close(network(tokens[:1], level[:1], fps[:1]), wanted[:1])
        memory = network.encode_text(None, None)
        parity.assert_close(network(tokens[:1], level[:1], fps[:1], memory=memory), wanted[:1])


def test_folding_twice_is_folding_once_and_leaves_no_plain_kernel():
    config = SpectralTransformerConfig(**BASE)
    network, _, _ = assert_equal(config, (1, 2, 2))
    before = {name: buffer.shape for name, buffer in network.named_buffers()}
    assert {name: buffer.shape for name, buffer in network.fold().named_buffers()} == before
    assert not any(name.endswith(("to_q.weight", "to_out.weight")) for name, _ in network.named_parameters())


def test_halves_are_close():
    config = SpectralTransformerConfig(**BASE)
    network, tensors, wanted = assert_equal(config, (2, 2, 2))
    with torch.inference_mode():
        found = network.to(torch.bfloat16)(*tensors)
    assert found.dtype == torch.float32
    parity.assert_close(found, wanted, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "S_paper_width_fat", "M"])  # all others pass too, but take minutes
def test_presets_at_full_width(name):
    assert_equal(dataclasses.replace(preset(name), blocks=1), (2, 8, 8), batch=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_preset_s_two_blocks_deep(kind):
    config = dataclasses.replace(preset("S"), blocks=2, spectral=kind, text_len=64, text_dim=512)
    assert_equal(config, (4, 8, 8), batch=2)

"""The tokenizer network: sizes, causality, precision, options."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE, init_tokenizer, masked_frame_index_loss
from motionaura_jax.models.autoencoders.tiling import crop, pad
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer


def _config(levels: int = 2, **overrides: Any) -> MBQVAEConfig:
    last = (0,) * (levels - 1) + (1,)
    none = (0,) * levels
    defaults: dict[str, Any] = {
        "channels": (8, 16, 16)[:levels],
        "enc_mb": last,
        "enc_inc": none,
        "dec_mb": last,
        "dec_inc": none,
        "t_stride": 2,
        "latent_dim": 4,
        "z_channels": 8,
        "codebook_size": 16,
        # Equal to the fast forms (tests of `ops`), but compiles in a third of the time.
        "conv_impl": "lax",
        "depthwise_impl": "lax",
    }
    return MBQVAEConfig(**{**defaults, **overrides})


def _network(config: MBQVAEConfig) -> Any:
    params, _ = jax.jit(lambda key: init_tokenizer(config, key))(jax.random.key(0))
    return params["network"]


def _video(*shape: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (*shape, 3), minval=-1.0, maxval=1.0)


def _apply(config: MBQVAEConfig, params: Any, video: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    model = MBQVAE(config)
    z = model.apply({"params": params}, video, method="encode")
    decoded = model.apply({"params": params}, z, method="decode")
    return z, decoded, model.apply({"params": params}, z, method="mfi_logits")


def _run(config: MBQVAEConfig, params: Any, video: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jax.jit(lambda video: _apply(config, params, video))(video)


def _shapes(config: MBQVAEConfig, video: jax.Array) -> Any:
    """Return the shapes of the results without compiling anything."""
    params, _ = jax.eval_shape(lambda key: init_tokenizer(config, key), jax.random.key(0))
    return jax.eval_shape(lambda params, video: _apply(config, params, video), params["network"], video)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t_stride", [1, 2, 4])
def test_any_size_round_trip(t_stride: int, causal: bool) -> None:
    config = _config(3, t_stride=t_stride, causal=causal, enc_mb=(0, 0, 0), dec_mb=(0, 0, 0))
    video = _video(2, 7, 13, 18)
    padded, size = pad(config.geometry, video)
    z, decoded, logits = _shapes(config, padded)
    assert z.shape == (2, *config.latent_shape(7, 13, 18), 4)
    assert decoded.shape == padded.shape
    assert logits.shape == (2, padded.shape[1])
    np.testing.assert_array_equal(crop(padded, size), video)
    np.testing.assert_array_equal(padded[:, -1, -1, -1], video[:, -1, -1, -1])


@pytest.mark.parametrize(
    ("stem", "time", "space", "t_stride", "causal"),
    [
        ("patch", 1, 2, 2, False),
        ("patch", 2, 4, 4, True),
        ("haar", 2, 4, 2, False),
        ("haar", 1, 8, 2, True),
        ("haar", 4, 2, 4, True),
    ],
)
def test_patches_at_any_size(stem: str, time: int, space: int, t_stride: int, causal: bool) -> None:
    patches: dict[str, Any] = {"stem": stem, "stem_time": time, "stem_space": space}
    config = _config(t_stride=t_stride, causal=causal, enc_mb=(0, 0), dec_mb=(0, 0), **patches)
    assert config.strides == (t_stride, 2 * space, 2 * space)
    padded, size = pad(config.geometry, _video(1, 7, 13, 18))
    z, decoded, logits = _shapes(config, padded)
    assert z.shape == (1, *config.latent_shape(*size), 4)
    assert decoded.shape == padded.shape
    assert logits.shape == padded.shape[:2]


@pytest.mark.parametrize(("causal", "frames"), [(False, 2), (True, 1)])
def test_image_becomes_the_shortest_clip(causal: bool, frames: int) -> None:
    config = _config(causal=causal)
    padded, size = pad(config.geometry, _video(1, 1, 8, 8))
    assert padded.shape == (1, frames, 8, 8, 3)
    assert size == (1, 8, 8)


def test_sizes_off_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"call tiling\.pad first"):
        jax.eval_shape(lambda v: MBQVAE(_config()).init(jax.random.key(0), v), _video(1, 3, 8, 8))


def test_mfi_logits_of_a_padded_clip_cover_its_frames_only() -> None:
    config = _config(enc_mb=(0, 0), dec_mb=(0, 0))
    z = jnp.zeros((3, 4, 2, 2, 4))
    params = {"params": jax.eval_shape(lambda: _network(config))}
    for frames, expected in (((7,), 7), ((), 8)):
        logits = jax.eval_shape(
            lambda p, frames=frames: MBQVAE(config).apply(p, z, *frames, method="mfi_logits"), params
        )
        assert logits.shape == (3, expected)


def test_masked_frame_index_loss_is_the_negative_log_likelihood() -> None:
    logits = jnp.log(jnp.array([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]))
    loss = masked_frame_index_loss(logits, jnp.array([1, -1]))
    np.testing.assert_allclose(loss, [-np.log(0.7), 0.0], rtol=1e-6)


def _energy_by_frame(gradient: jax.Array) -> np.ndarray:
    return np.asarray(jnp.abs(gradient).sum((0, 2, 3, 4)))


@pytest.mark.parametrize(
    "changes",
    [
        {"upsample": "nearest", "enc_inc": (0, 1), "dec_inc": (0, 1), "inception_width": 0.5},
        {"upsample": "subpixel"},
        {"upsample": "nearest", "stem": "patch", "stem_time": 2, "t_stride": 4},
        {"upsample": "subpixel", "stem": "haar", "stem_time": 2},
    ],
)
def test_causal_model_never_sees_the_future(changes: dict) -> None:
    config = _config(causal=True, **changes)
    params, model = {"params": _network(config)}, MBQVAE(config)
    stride, latent = config.t_stride, 2
    video = _video(1, 1 + 4 * stride, 8, 8)

    encode_gradient = jax.jit(jax.grad(lambda v: model.apply(params, v, method="encode")[:, latent].sum()))(video)
    seen = _energy_by_frame(encode_gradient) > 0
    assert seen[: stride * latent + 1].all()
    assert not seen[stride * latent + 1 :].any()

    z = jax.random.normal(jax.random.key(2), (1, 5, 2, 2, 4))
    decode_gradient = jax.jit(jax.grad(lambda z: model.apply(params, z, method="decode")[:, stride * latent].sum()))(z)
    used = _energy_by_frame(decode_gradient) > 0
    assert used[: latent + 1].all()
    assert not used[latent + 1 :].any()


def test_symmetric_model_sees_both_sides() -> None:
    config = _config(enc_mb=(0, 0), dec_mb=(0, 0))
    params, model = {"params": _network(config)}, MBQVAE(config)
    gradient = jax.jit(jax.grad(lambda v: model.apply(params, v, method="encode")[:, 1].sum()))(_video(1, 8, 8, 8))
    seen = _energy_by_frame(gradient) > 0
    assert seen[1] and seen[4]


def test_bfloat16_compute_keeps_float32_weights_and_results() -> None:
    config = _config(dtype="bfloat16", conv_impl="auto", depthwise_impl="auto")
    params = _network(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    video = _video(1, 4, 8, 8)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        decoded, logits = MBQVAE(config).apply({"params": params}, video)
        assert decoded.dtype == logits.dtype == jnp.float32
        return jnp.square(decoded - video).mean(), decoded

    (value, result), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert jnp.isfinite(value)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    reference = _run(_config(), params, video)[1]
    assert float(jnp.abs(result - reference).max()) < 0.05 * float(jnp.abs(reference).max())


@pytest.mark.parametrize(
    "overrides",
    [{"se_pos": "after"}, {"lead": "factor"}, {"norm": "frame_gn"}, {"inception_width": 0.5, "inception_final": 1}],
)
def test_options_change_the_function_not_the_shape(overrides: dict) -> None:
    inception = {"enc_mb": (0, 0), "enc_inc": (0, 1)} if "inception_width" in overrides else {}
    plain = _config(**{"dec_mb": (0, 0), **inception})
    config, video = dataclasses.replace(plain, **overrides), _video(1, 4, 8, 8)
    z, _, _ = _run(config, _network(config), video)
    reference, _, _ = _run(plain, _network(plain), video)
    assert z.shape == reference.shape
    assert not np.allclose(z, reference, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "impls"), [("transpose_impl", ("polyphase", "lax")), ("nearest_impl", ("blocks", "argmin"))]
)
def test_implementations_are_chosen_by_config_and_agree(key: str, impls: tuple[str, str]) -> None:
    video, plain = _video(1, 4, 8, 8), _config(enc_mb=(0, 0), dec_mb=(0, 0))
    params, extra = jax.jit(lambda key: init_tokenizer(plain, key))(jax.random.key(0))
    results, programs = [], []
    for impl in (*impls, "auto"):
        tokenizer = Tokenizer(config=dataclasses.replace(plain, **{key: impl}), params=params, extra=extra)
        run = jax.jit(lambda video, tokenizer=tokenizer: tokenizer.decode(tokenizer.encode(video)))
        programs.append(str(jax.make_jaxpr(run)(video)))
        results.append(run(video))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    assert programs[0] != programs[1] and programs[0] == programs[2]


def test_zero_init_makes_an_mbconv_the_identity() -> None:
    video = _video(1, 4, 8, 8)
    with_block, without = _config(zero_init=True), _config(zero_init=True, enc_mb=(0, 0), dec_mb=(0, 0))
    params = _network(with_block)
    stripped = {part: {k: v for k, v in params[part].items() if k != "level_1"} for part in ("encoder", "decoder")}
    z, decoded, _ = _run(with_block, params, video)
    expected = _run(without, {**params, **stripped}, video)
    np.testing.assert_allclose(z, expected[0], atol=1e-6)
    np.testing.assert_allclose(decoded, expected[1], atol=1e-6)


def test_a_fresh_decoder_gives_every_pixel_of_a_patch_one_value() -> None:
    config = _config(stem="patch", stem_time=2, stem_space=4, enc_mb=(0, 0), dec_mb=(0, 0))
    _, decoded, _ = _run(config, _network(config), _video(1, 4, 16, 16))
    blocks = decoded.reshape(2, 2, 4, 4, 4, 4, 3)
    np.testing.assert_allclose(blocks, jnp.broadcast_to(blocks[:, :1, :, :1, :, :1], blocks.shape), atol=1e-6)


@pytest.mark.parametrize(("stem", "time", "space"), [("conv", 1, 2), ("patch", 2, 4), ("haar", 2, 4)])
def test_a_fresh_output_layer_preserves_variance(stem: str, time: int, space: int) -> None:
    config = _config(stem=stem, stem_time=time, stem_space=space, enc_mb=(0, 0), dec_mb=(0, 0), channels=(16, 16))
    params = _network(config)
    z = jax.random.normal(jax.random.key(2), (2, 8, 8, 8, 4))

    def decode(z: jax.Array) -> tuple[jax.Array, Any]:
        return MBQVAE(config).apply(
            {"params": params}, z, method="decode", capture_intermediates=lambda module, _: module.name == "norm"
        )

    decoded, state = jax.jit(decode)(z)
    features = state["intermediates"]["decoder"]["norm"]["__call__"][0]
    before = float(jnp.square(jax.nn.silu(features))[:, 1:-1, 1:-1, 1:-1].mean())
    assert float(jnp.square(decoded)[:, 4:-4, 8:-8, 8:-8].mean()) == pytest.approx(before, rel=0.5)


def test_subpixel_phases_start_equal() -> None:
    config = _config(upsample="subpixel", dec_mb=(0, 0))
    params = _network(config)
    kernel = params["decoder"]["up_0"]["conv"]["conv"]["kernel"]
    assert kernel.shape[-1] == 8 * 8
    phases = kernel.reshape(*kernel.shape[:-1], 8, 8)
    np.testing.assert_array_equal(phases, jnp.broadcast_to(phases[..., :1, :], phases.shape))

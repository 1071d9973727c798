"""Speed of encoding and decoding a 16x128x128 clip, against the tokenizers users would otherwise pick, interleaved.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.tokenizer_speed [--rounds=5] [--presets base base,haar]

Presets are those of `configs/tokenizer.py`; ratios are those of the first one.
Peers that are not installed are skipped (`pip install torch==2.13.0 diffusers magvit2-pytorch`).  Weights are random, which
does not affect the timing.  Peers that are slow or work on single frames get part of the clip; rates are per pixel.
"""

import argparse
import dataclasses
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.timing import Timing, compile_case, interleave
from motionaura_jax.core import config
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE, init_tokenizer

CLIP = (1, 16, 128, 128, 3)
CODES = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Tokenizer to time: two blocking calls, megapixels per call, and millions of parameters of encoder and decoder."""

    encode: Callable[[], object]
    decode: Callable[[], object]
    pixels: float
    parameters: tuple[float, float]


def ours(name: str) -> Case:
    """Return the 3D-MBQ-VAE of composed presets in float32."""
    values = config.read(f"configs/tokenizer.py:{name}", ["--config.model.quantizer=none"])
    model = config.build(MBQVAEConfig, values["model"])
    network = MBQVAE(model)
    params = jax.jit(lambda: init_tokenizer(model, jax.random.key(0))[0]["network"])()
    video = jax.random.normal(jax.random.key(1), CLIP)
    apply = lambda method: lambda params, x: network.apply({"params": params}, x, method=method)  # noqa: E731
    encode = compile_case(apply("encode"), params, video)
    z = jnp.zeros((1, *model.latent_shape(*CLIP[1:4]), model.latent_dim))
    decode = compile_case(apply("decode"), params, z)
    sizes = tuple(sum(leaf.size for leaf in jax.tree.leaves(params[part])) / 1e6 for part in ("encoder", "decoder"))
    return Case(encode=encode.call, decode=decode.call, pixels=16 * 128 * 128 / 1e6, parameters=(sizes[0], sizes[1]))


def peers() -> dict[str, Callable[[], Case]]:
    """Return constructors of the peers whose packages are installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    found: dict[str, Callable[[], Case]] = {}
    if importlib.util.find_spec("diffusers"):
        found["diffusers VQModel f16 (4 frames)"] = _vqmodel
        found["diffusers AutoencoderKLCogVideoX (8x64x64)"] = _cogvideox
        found["diffusers AutoencoderKLCosmos 8x16x16 (17 frames)"] = _cosmos
    if importlib.util.find_spec("magvit2_pytorch"):  # last: diffusers must not import the torchvision stub
        found["magvit2-pytorch VideoTokenizer 4x16x16"] = _magvit2
    return found


def _torch_case(encode, decode, video, parts) -> Case:
    import torch

    with torch.inference_mode():
        z = encode(video)

    def call(function, value):
        def timed():
            with torch.inference_mode():
                return function(value)

        return timed

    sizes = [sum(p.numel() for part in group for p in part.parameters()) / 1e6 for group in parts]
    frames = video.shape[2] if video.ndim == 5 else video.shape[0]
    pixels = frames * video.shape[-1] * video.shape[-2] / 1e6
    return Case(encode=call(encode, video), decode=call(decode, z), pixels=pixels, parameters=(sizes[0], sizes[1]))


def _magvit2() -> Case:
    import torch

    _replace_torchvision()
    from magvit2_pytorch import VideoTokenizer

    pair = ("consecutive_residual", 2)
    space, time = "compress_space", "compress_time"
    layers = ("residual", space, pair, space, pair, space, pair, space, pair, time, time, pair)
    model = VideoTokenizer(
        image_size=128,
        init_dim=64,
        max_dim=512,
        codebook_size=CODES,
        use_gan=False,
        perceptual_loss_weight=0.0,
        layers=layers,
    ).eval()
    parts = ((model.encoder_layers, model.conv_in), (model.decoder_layers, model.conv_out))
    encode = lambda x: model.encode(x, quantize=False)  # noqa: E731
    return _torch_case(encode, model.decode, torch.randn(1, 3, 16, 128, 128), parts)


def _vqmodel() -> Case:
    import torch
    from diffusers import VQModel

    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(128, 256, 256, 512, 768),
        layers_per_block=2,
        latent_channels=64,
        num_vq_embeddings=CODES,
        mid_block_add_attention=False,
    ).eval()
    parts = ((model.encoder,), (model.decoder,))
    decode = lambda z: model.decode(z).sample  # noqa: E731
    return _torch_case(lambda x: model.encode(x).latents, decode, torch.randn(4, 3, 128, 128), parts)


def _cogvideox() -> Case:
    import torch
    from diffusers import AutoencoderKLCogVideoX

    model = AutoencoderKLCogVideoX().eval()
    return _continuous(model, torch.randn(1, 3, 8, 64, 64))


def _cosmos() -> Case:
    import torch
    from diffusers import AutoencoderKLCosmos

    model = AutoencoderKLCosmos(spatial_compression_ratio=16, temporal_compression_ratio=8).eval()
    return _continuous(model, torch.randn(1, 3, 17, 128, 128))


def _continuous(model, video) -> Case:
    encode = lambda x: model.encode(x).latent_dist.mode()  # noqa: E731
    return _torch_case(encode, lambda z: model.decode(z).sample, video, ((model.encoder,), (model.decoder,)))


def _replace_torchvision() -> None:
    """Stub torchvision if it is missing; magvit2-pytorch imports it only for VGG and file access."""
    if importlib.util.find_spec("torchvision"):
        return
    for part in ("", ".models", ".transforms", ".utils", ".datasets", ".io"):
        name = f"torchvision{part}"
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        module.__getattr__ = lambda key: mock.MagicMock()  # type: ignore[method-assign]
        sys.modules[name] = module
    sys.modules["torchvision.models"].VGG16_Weights = type("VGG16_Weights", (), {"DEFAULT": None})


def row(name: str, case: Case, encode: Timing, decode: Timing, reference: tuple[float, float]) -> str:
    """Format one row of the table; ratios are our rate over theirs, in CPU seconds."""
    rates = [case.pixels / timing.cpu for timing in (encode, decode)]
    ratios = [ours / theirs for ours, theirs in zip(reference, rates, strict=True)]
    return (
        f"| {name} | {case.parameters[0]:.0f} + {case.parameters[1]:.0f} | {rates[0]:.3f} | {rates[1]:.3f} | "
        f"{case.pixels / encode.wall:.3f} | {case.pixels / decode.wall:.3f} | {ratios[0]:.1f} | {ratios[1]:.1f} |"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--presets", nargs="+", default=["base"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    cases = {f"ours, {name}": ours(name) for name in args.presets}
    first = next(iter(cases))
    available = peers()
    if available:
        import torch

        torch.set_num_threads(args.threads)
    for peer, build in available.items():
        cases[peer] = build()
    calls = {f"{n}/{part}": getattr(case, part) for n, case in cases.items() for part in ("encode", "decode")}
    timings = interleave(calls, rounds=args.rounds)
    reference = tuple(cases[first].pixels / timings[f"{first}/{part}"].cpu for part in ("encode", "decode"))
    print(
        "| tokenizer | M parameters | encode Mpx/CPU s | decode Mpx/CPU s | encode Mpx/s | decode Mpx/s | ours x | ours x |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for n, case in cases.items():
        print(row(n, case, timings[f"{n}/encode"], timings[f"{n}/decode"], (reference[0], reference[1])))


if __name__ == "__main__":
    main()

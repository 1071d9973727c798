"""CPU benchmark of the denoiser: forward pass, sampling, and compile time of the training step of `L`.

    python -m benchmarks.denoiser [--only=forward,sampling,compile] [--rounds=15]

Width 512, 8 heads, 8 blocks, MLP x4, 8192 codes, 180 x 4096 text features, float32.  Weights are random, which does not
affect the timing.  "Ours" has the default settings; "naive" is the same network with full complex FFTs.  The torch twin is
skipped if torch is not installed.  All cases of a table are interleaved in this process; compare CPU seconds.  The forward
pass cycles through copies of its weights, 8 GB in total.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.timing import Timing, interleave
from motionaura_jax.core import config, process
from motionaura_jax.core.types import Cond
from motionaura_jax.diffusion.absorbing import Absorbing
from motionaura_jax.diffusion.samplers.absorbing import Confidence
from motionaura_jax.diffusion.sampling import Guidance, guided, sample
from motionaura_jax.diffusion.schedules import Cosine
from motionaura_jax.models.autoencoders.config import preset
from motionaura_jax.models.autoencoders.mbq_vae import init_tokenizer
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.denoisers.fold import fold
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.ops import fft
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.training import optimizer, state, step

SIZE: dict[str, Any] = {"vocab_size": 8192, "width": 512, "heads": 8, "blocks": 8}
TEXT = (180, 4096)
FORWARD_GRID, SAMPLING_GRID, TRAINING_GRID = (4, 16, 16), (4, 8, 8), (8, 16, 16)
STEPS, GUIDANCE_SCALE = 12, 5.0
COPIES = 4
"""Copies of the weights per case: their position in memory changes the time of a pass by up to 4 %."""
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """Minimum CPU seconds that a case should take, as a multiple of ours; 0 sets no bar."""

    factor: float
    note: str = ""


@contextlib.contextmanager
def naive_transforms() -> Iterator[None]:
    """Make code compiled in this context use full complex transforms over tokens and channels, as in equations 2 to 5."""
    parts = lambda x, axes: (lambda y: (y.real, y.imag))(fft.fft2(x))  # noqa: E731
    with mock.patch.multiple(fft, re_fft2=lambda x: fft.fft2(x).real, fft_parts=parts):
        yield


def network(spectral: Any, folded: bool) -> tuple[SpectralTransformer, Any]:
    """Return our denoiser and random weights for it."""
    settings = SpectralTransformerConfig(spectral=spectral, text_len=TEXT[0], text_dim=TEXT[1], **SIZE)
    model = SpectralTransformer(settings)
    example = (jnp.zeros((1, 2, 2, 2), jnp.int32), jnp.ones(1), condition(1))

    def create() -> Any:
        params = model.init(jax.random.key(0), *example)["params"]
        return fold(params, settings) if folded else params

    return SpectralTransformer(settings, folded=folded), jax.jit(create)()


def condition(seed: int) -> Cond:
    """Return random text features and a frame rate."""
    return Cond(tokens=jax.random.normal(jax.random.key(seed), (1, *TEXT)), scalars={"fps": jnp.full(1, 8.0)})


def forward_program(spectral: str, folded: bool) -> tuple[jax.stages.Compiled, tuple[Any, ...]]:
    """Return a compiled forward pass, text encoding included, and its arguments, weights first."""
    model, params = network(spectral, folded)
    tokens = jax.random.randint(jax.random.key(2), (1, *FORWARD_GRID), 0, SIZE["vocab_size"] + 1)
    arguments = params, tokens, jnp.full(1, 0.5), condition(1)
    call = lambda params, *inputs: model.apply({"params": params}, *inputs).dense()  # type: ignore[union-attr]  # noqa: E731
    return jax.jit(call).lower(*arguments).compile(), arguments


def forward_case(spectral: str, folded: bool) -> Callable[[], object]:
    """Return a call of `forward_program` that uses another copy of the weights each time."""
    program, (params, *inputs) = forward_program(spectral, folded)
    copies = itertools.cycle([jax.tree.map(jnp.copy, params) for _ in range(COPIES)])
    return lambda: jax.block_until_ready(program(next(copies), *inputs))


def twins() -> dict[str, Any]:
    """Return the torch networks with and without FFT, or none if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    from benchmarks.torch_twin import TorchDenoiser

    make = lambda spectral: TorchDenoiser(**SIZE, text_width=TEXT[1], spectral=spectral).eval()  # noqa: E731
    return {"torch twin": make(True), "torch twin without FFT": make(False)}


def without_gradients(call: Callable[[], object]) -> Callable[[], object]:
    """Wrap torch code so that it runs in inference mode."""
    import torch

    def timed() -> object:
        with torch.inference_mode():
            return call()

    return timed


def forward(rounds: int) -> None:
    """Time one pass over 1024 tokens."""
    cases = {
        "folded": forward_case("re_fft2", True),
        "without FFT": forward_case("none", False),
        "unfolded": forward_case("re_fft2", False),
        "hartley, folded": forward_case("hartley", True),
    }
    with naive_transforms():
        cases["naive"] = forward_case("re_fft2", False)
    for name, model in twins().items():
        import torch

        inputs = (torch.randint(0, SIZE["vocab_size"], (1, 1024)), torch.tensor([5]), torch.randn(1, *TEXT))
        cases[name] = without_gradients(functools.partial(model, *inputs))
    bars = {
        "without FFT": Bar(factor=1 / 1.03, note="folded at most 3 % slower"),
        "naive": Bar(factor=1.15),
        "torch twin": Bar(factor=1.3),
    }
    print(f"\nForward pass of 1024 tokens\n{table(interleave(cases, rounds=rounds), bars)}", flush=True)


def sampling_case() -> tuple[Callable[[int], object], Any]:
    """Return seed -> tokens, as `TextToVideoSystem.sample` samples them, and its jitted function."""
    model, params = network("re_fft2", True)
    weights = {"params": params}
    sampler, guidance = Confidence(vocab_size=SIZE["vocab_size"]), Guidance(scale=GUIDANCE_SCALE - 1)
    start = Absorbing(vocab_size=SIZE["vocab_size"], schedule=Cosine()).prior((1, *SAMPLING_GRID))
    given = jnp.array([[True], [False]]).repeat(TEXT[0], axis=1)

    @jax.jit
    def draw(weights, cond, keys):
        both = Cond(tokens=cond.tokens.repeat(2, axis=0), token_mask=given, scalars={"fps": jnp.full(2, 8.0)})
        memory = model.apply(weights, both, method="encode_cond")
        denoise = lambda x, m: model.apply(weights, x, m, both, memory).dense()  # type: ignore[union-attr]  # noqa: E731
        return sample(guided(denoise, guidance), sampler, keys, start, steps=STEPS).x

    prompts = {seed: (condition(seed), jax.random.split(jax.random.key(seed), 1)) for seed in (1, 2)}
    return lambda seed: jax.block_until_ready(draw(weights, *prompts[seed])), draw


def compilations(call: Callable[[], object]) -> int:
    """Return how many programs `call` compiles."""
    events: list[str] = []

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    call()
    jax.monitoring.unregister_event_duration_listener(listener)
    return events.count(COMPILE_EVENT)


def sampling(rounds: int) -> None:
    """Time 12 sampling steps of 256 tokens, guidance as a batch of two and text encoding included."""
    draw, jitted = sampling_case()
    first, second = (compilations(functools.partial(draw, seed)) for seed in (1, 2))
    cases: dict[str, Callable[[], object]] = {"folded": functools.partial(draw, 1)}
    for name, model in twins().items():
        import torch

        from benchmarks.torch_twin import sample as torch_sample

        settings: dict[str, Any] = {
            "length": 256,
            "vocab_size": SIZE["vocab_size"],
            "steps": STEPS,
            "scale": GUIDANCE_SCALE,
        }
        text = torch.randn(1, *TEXT)
        cases[name] = without_gradients(functools.partial(torch_sample, model, text, **settings))
    rows = table(interleave(cases, rounds=rounds), {"torch twin": Bar(factor=2.0)})
    print(f"\n{STEPS} steps of 256 tokens with guidance\n{rows}")
    print(
        f"\nPrograms compiled: first prompt {first}, second prompt {second}; cached {jitted._cache_size()}", flush=True
    )


def table(timings: Mapping[str, Timing], bars: Mapping[str, Bar]) -> str:
    """Format a table of medians; the factor is CPU seconds relative to the first case, which is ours."""
    ours = next(iter(timings.values()))
    lines = ["| network | wall ms | CPU ms | CPU over folded | target |", "|---|---|---|---|---|"]
    for name, timing in timings.items():
        bar = bars.get(name)
        wanted = f"{bar.factor:.2f}{f' ({bar.note})' if bar.note else ''}" if bar else ""
        factor = timing.cpu / ours.cpu
        lines.append(f"| {name} | {1e3 * timing.wall:.0f} | {1e3 * timing.cpu:.0f} | {factor:.2f} | {wanted} |")
    return "\n".join(lines)


def abstract_step(variant: str, dtype: str) -> tuple[Any, tuple[Any, ...]]:
    """Return the training step of a preset at batch 1 and 2048 tokens, and its abstract arguments."""
    tokenizer = preset("tiny")
    frames, height, width = (n * stride for n, stride in zip(TRAINING_GRID, tokenizer.strides, strict=True))
    settings = {
        "tokenizer": "abstract",
        "latent_space": "abstract",
        "text.vocabulary": "word",
        "model.dtype": dtype,
        "data.num_frames": frames,
        "data.height": height,
        "data.width": width,
        "data.batch_size": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    recipe = config.build(TextToVideoSystem.Recipe, config.read(f"configs/text_to_video.py:{variant}", flags))
    system: Any = TextToVideoSystem(recipe)
    optimize = optimizer.of(system)
    fresh = jax.eval_shape(lambda: state.create(system, optimize, recipe.seed))
    params, extra = jax.eval_shape(lambda: init_tokenizer(tokenizer, jax.random.key(0)))
    frozen = {"tokenizer": Tokenizer(config=tokenizer, params=params, extra=extra, latent_space="abstract")}
    return step.make_train_step(system, optimize), (fresh, frozen, dict(system.batch_spec()))


def compile_presets(variants: tuple[str, ...]) -> None:
    """Time tracing, lowering and compiling one training step, without the persistent compilation cache."""
    print("\n| preset | M parameters | dtype | trace, lower, compile: wall s | CPU s | state GiB | temporary GiB |")
    print("|---|---|---|---|---|---|---|")
    for variant in variants:
        for dtype in ("bfloat16", "float32"):
            function, arguments = abstract_step(variant, dtype)
            wall, cpu = time.perf_counter(), time.process_time()
            executable = function.lower(*arguments).compile()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            count = state.parameter_count(arguments[0].params) / 1e6
            memory = executable.memory_analysis()
            sizes = " | ".join(f"{n / 2**30:.1f}" for n in (memory.argument_size_in_bytes, memory.temp_size_in_bytes))
            print(f"| {variant} | {count:.0f} | {dtype} | {wall:.1f} | {cpu:.1f} | {sizes} |", flush=True)


def main() -> None:
    """Run the command line."""
    process.keep_freed_memory()  # as every command does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="forward,sampling,compile", help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls per case (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    parser.add_argument("--presets", default="L", help="presets of configs/text_to_video.py (default: %(default)s)")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning torch threads would count as CPU work
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(options.threads)
    parts = {
        "forward": lambda: forward(options.rounds),
        "sampling": lambda: sampling(max(3, options.rounds // 3)),
        "compile": lambda: compile_presets(tuple(options.presets.split(","))),
    }
    if unknown := set(options.only.split(",")) - set(parts):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
    for name in options.only.split(","):
        parts[name]()


if __name__ == "__main__":
    main()

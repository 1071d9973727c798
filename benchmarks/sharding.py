"""Memory and communication of a training step on simulated meshes: compiled for virtual CPU devices, nothing is allocated.

    python -m benchmarks.sharding parameters [--preset L --devices 8 32 64]     # fsdp over all devices, one clip each
    python -m benchmarks.sharding tokens [--preset S --devices 1 2 4 8]         # sequence over all devices, one clip

`parameters` prints the state per device next to the ideal, 12 bytes (16 with an average) per parameter of the device's
share, and the cost of the step for clips of 2,048 tokens.  `tokens` uses clips of 61,440 tokens (10 s at 24 frames per
second) at reduced width.  Temporary memory and bytes sent are upper bounds: XLA on a CPU all-reduces gradients where other
backends reduce-scatter them, and computes bfloat16 in float32.
"""

import argparse
import resource

from motionaura_jax.core import config
from motionaura_jax.parallel.config import parse
from motionaura_jax.planning import estimate, questions

SHORT = {"num_frames": 32, "height": 256, "width": 256, "fps": 24.0}  # 8 x 16 x 16 tokens
LONG = {**SHORT, "num_frames": 960}  # 240 x 16 x 16 tokens
REDUCED = {"width": 256, "heads": 16, "blocks": 4}
COLUMNS = {
    "parameters": (
        "devices",
        "M parameters",
        "state GB",
        "bytes x P / n, GB",
        "temporary GB",
        "gathered B/P",
        "compile s",
        "CPU s",
    ),
    "tokens": ("devices", "M parameters", "state GB", "temporary GB", "all-to-all GB", "compile s", "CPU s"),
}


def measure(what: str, preset: str, devices: int) -> dict[str, float]:
    """Measure one row of the table; CPU seconds include the whole process that compiles the step."""
    values = config.read(f"configs/text_to_video.py:{preset}", [])
    split = what == "tokens"
    values["data"] = {**(LONG if split else SHORT), "batch_size": 1 if split else devices}
    values["model"] |= REDUCED if split else {}
    mesh = parse(f"data:1,{'sequence' if split else 'fsdp'}:{devices}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    answer = estimate.ask(questions.question(values, mesh))
    count = answer.parameters
    per_parameter = 16 if answer.held["average"] else 12
    return {
        "devices": devices,
        "M parameters": count / 1e6,
        "state GB": sum(answer.held[name] for name in ("parameters", "optimizer", "average")) / 1e9,
        "bytes x P / n, GB": per_parameter * count / devices / 1e9,
        "temporary GB": answer.temporary / 1e9,
        "gathered B/P": answer.collectives["all-gather"] / count,
        "all-to-all GB": answer.collectives["all-to-all"] / 1e9,
        "compile s": answer.compile_seconds,
        "CPU s": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COLUMNS)
    parser.add_argument("--preset", default="")
    parser.add_argument("--devices", type=int, nargs="+")
    args = parser.parse_args()
    split = args.what == "tokens"
    columns = COLUMNS[args.what]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for count in args.devices or ([1, 2, 4, 8] if split else [8, 32, 64]):
        row = measure(args.what, args.preset or ("S" if split else "L"), count)
        print(f"| {' | '.join(f'{row[name]:.4g}' for name in columns)} |", flush=True)


if __name__ == "__main__":
    main()

"""Estimate the resources of a training run without its devices.

    python -m motionaura_jax.estimate --config=text_to_video:L --mesh=data:8,fsdp:8 --device=h100

The command compiles the real training step for abstract arrays: for the GPUs or TPUs themselves if their compiler is
installed (extras `gpu-estimate` and `tpu`), otherwise for virtual devices of a CPU. It allocates nothing and reads no data.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from motionaura_jax.core import cli
from motionaura_jax.parallel import config as meshes
from motionaura_jax.planning import machines
from motionaura_jax.planning.machines import GIB

if TYPE_CHECKING:
    from motionaura_jax.planning.estimate import Estimate

_DERIVED = (
    "derived for a GPU: the state is exact; temporary memory and communication come from the program for a CPU, "
    "which is too high by 1.3 to 8 times"
)
logger = logging.getLogger(__name__)

_UNITS = ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def estimate(location: str, overrides: Sequence[str], mesh: str, device: str) -> dict[str, Any]:
    """Compile the training step of a config; if it does not fit `device`, find the cheapest change that makes it fit.

    Raises:
      UserError: the config, the mesh or the device is invalid.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # no accelerator is needed, and another run may be using it
    from motionaura_jax.core import config
    from motionaura_jax.planning import estimate, questions
    from motionaura_jax.planning.advice import advise

    machine = machines.machine(device)
    asked = questions.question(config.read(location, overrides), meshes.parse(mesh) if mesh else None)
    topology, source = _target(device, math.prod(asked.mesh.values()))
    asked = estimate.Question(values=asked.values, mesh=asked.mesh, topology=topology)
    answer = estimate.ask(asked)
    advice = str(advise(asked, answer, machine.limit, estimate.ask)) if answer.peak > machine.limit else ""
    source += f"; without {answer.uncounted}" if answer.uncounted else ""
    return {
        "mesh": meshes.shown(dict(asked.mesh)),
        "figures": source,
        **_report(answer),
        "device": device,
        "advice": advice,
    }


def _target(device: str, count: int) -> tuple[str | None, str]:
    """Return the topology to compile for, None for that of a CPU, and the source of the figures in words."""
    topology = machines.topology(device, count)
    if machines.machine(device).gpu and (missing := machines.missing()):
        remedy = f"{machines.install(machines.GPU_EXTRA)} compiles for the GPU itself"
        logger.warning("%s not installed, so the step is compiled for a CPU; %s", " and ".join(missing), remedy)
        return None, _DERIVED
    return topology, f"compiled for {topology}" if topology else "compiled for a CPU" if device == "cpu" else _DERIVED


def _report(answer: "Estimate") -> dict[str, Any]:
    """Return the estimate as plain values; bytes are per device."""
    return {
        "devices": answer.devices,
        "parameters": answer.parameters,
        "trained_parameters": answer.parameters if answer.trained is None else answer.trained,
        "state_bytes": dict(answer.held),
        "temporary_bytes": answer.temporary + answer.results,
        "peak_bytes": answer.peak,
        "model_flops": answer.model_flops,
        "xla_flops_per_device": answer.xla_flops,
        "collective_bytes": dict(answer.collectives),
        "exposed_bytes": dict(answer.exposed),
        "launches_per_device": answer.launches,
        "ffts_per_device": answer.ffts,
        "compile_seconds": answer.compile_seconds,
        "fits": {f"{size} GB": answer.peak <= machines.Machine(size).limit for size in machines.SIZES},
    }


def _show(result: Mapping[str, Any]) -> None:
    """Show an estimate as a table."""
    held, devices = result["state_bytes"], result["devices"]
    arithmetic = (
        f"{result['model_flops'] / 1e12:.4g} TFLOP per step, {result['model_flops'] / devices / 1e12:.4g} on each"
    )
    total, trained = (f"{result[key] / 1e6:.2f} M" for key in ("parameters", "trained_parameters"))
    rows = [
        *((name, _size(value)) for name, value in held.items() if value),
        ("temporary", _size(result["temporary_bytes"])),
        ("peak, the sum", _size(result["peak_bytes"])),
        ("fits into", ", ".join(name for name, fits in result["fits"].items() if fits) or "none of the common devices"),
        *([(f"to fit into {result['device']}", result["advice"])] if result["advice"] else []),
        *((f"{name}, received per step", _size(value)) for name, value in result["collective_bytes"].items() if value),
        ("model arithmetic", arithmetic),
        (
            "trained parameters",
            f"{trained} on all devices" if trained == total else f"{trained} of {total} on all devices",
        ),
        ("compilation, here", f"{result['compile_seconds']:.1f} s"),
        ("figures", result["figures"]),
    ]
    cli.show_table(("on each device", f"{result['mesh']} ({devices} device{'s' if devices > 1 else ''})"), rows)


def _size(count: float) -> str:
    unit, name = next(((size, name) for size, name in _UNITS if count >= size), _UNITS[-1])
    return f"{count / unit:.3g} {name}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = cli.Parser("estimate", "Estimate the resources of a training run without its devices.")
    parser.add_argument("--config", required=True, type=cli.place, help=cli.CONFIG)
    parser.add_argument("--mesh", default="", help="devices per axis, e.g. data:8,fsdp:8; empty means config.mesh")
    parser.add_argument(
        "--device", default="a100", help=f"device that the run must fit: {', '.join(machines.MACHINES)}"
    )
    parser.epilog = "Every key can be set: --config.KEY=VALUE, e.g. --config.model.remat=full"
    args, overrides = parser.parse_with_overrides(argv)
    body = lambda: estimate(args.config, overrides, args.mesh, args.device)  # noqa: E731
    return cli.run(body, as_json=args.json, show=_show)


if __name__ == "__main__":
    raise SystemExit(main())

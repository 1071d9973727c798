"""What `motionaura doctor` runs in a child process: imports every library and one computation, reporting line by line.

A library that crashes the interpreter, or a device that never answers, then ends the child and not the doctor.
Every line on stdout is a JSON object: `{"start": NAME}` before a check and `{"end": NAME, ...}` after it.
"""

import importlib
import json
from typing import Any

LIBRARIES = (
    "numpy",
    "scipy",
    "jax",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "grain",
    "array_record",
    "av",
    "PIL",
    "safetensors",
    "tokenizers",
    "transformers",
    "tensorboardX",
    "ml_collections",
)


def ffmpeg() -> dict[str, Any]:
    """Returns the versions of the bundled FFmpeg libraries and whether H.264 can be written."""
    import av

    versions = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return {"ffmpeg": versions, "h264": "libx264" in av.codecs_available}


def devices() -> dict[str, Any]:
    """Returns the devices that JAX sees, with memory in GB where the backend tells, after computing on each."""
    import jax
    import jax.numpy as jnp

    found = []
    for device in jax.local_devices():
        total = float(jnp.ones((8, 8), device=device).sum())
        if total != 64:
            raise ArithmeticError(f"{device} computes 8 x 8 = {total}")
        limit = (device.memory_stats() or {}).get("bytes_limit")
        memory = None if limit is None else round(limit / 1e9, 1)
        found.append({"platform": device.platform, "kind": device.device_kind, "memory_gb": memory})
    return {"devices": found}


def check(name: str) -> dict[str, Any]:
    """Runs the check `name`, one of LIBRARIES, "ffmpeg" or "devices", and returns what it found out."""
    if name == "ffmpeg":
        return ffmpeg()
    if name == "devices":
        return devices()
    importlib.import_module(name)
    return {}


def main() -> None:
    """Prints the report; what a failing check raises becomes the "error" of its line."""
    for name in (*LIBRARIES, "ffmpeg", "devices"):
        print(json.dumps({"start": name}), flush=True)
        try:
            line = {"end": name, **check(name)}
        except Exception as error:
            line = {"end": name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

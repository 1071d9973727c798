"""Child process of `motionaura doctor`: imports every library, computes on every device, and reports line by line.

A library that crashes the interpreter, or a device that never answers, then ends this process instead of the doctor.
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
    """Return the versions of the bundled FFmpeg libraries, and True as `h264` if they can write H.264."""
    import av

    versions = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return {"ffmpeg": versions, "h264": "libx264" in av.codecs_available}


def devices() -> dict[str, Any]:
    """Compute on every device of JAX; return platform, kind and memory in GB (None if unknown) of each."""
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
    """Run the check `name`, one of LIBRARIES, "ffmpeg" or "devices", and return its results."""
    if name == "ffmpeg":
        return ffmpeg()
    if name == "devices":
        return devices()
    importlib.import_module(name)
    return {}


def main() -> None:
    """Print the report; the exception of a failed check becomes the "error" of its line."""
    for name in (*LIBRARIES, "ffmpeg", "devices"):
        print(json.dumps({"start": name}), flush=True)
        try:
            line = {"end": name, **check(name)}
        except Exception as error:
            line = {"end": name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

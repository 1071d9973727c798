"""All that the doctor judges, as plain data."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from motionaura_jax.core import process
from motionaura_jax.health import installation, machine


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Installation and machine as they are.

    Attributes:
      python: version of the interpreter.
      versions: installed distributions by lower-case name with dashes; None for a required one that is missing.
      conflicts: requirements that an installed distribution states and the installation breaks, in words.
      extras: whether each extra is installed.
      ffmpeg: versions of the FFmpeg libraries that PyAV brings.
      h264: whether they can write H.264.
      errors: failed checks of the probe, by name.
      devices: "platform", "kind" and "memory_gb" (None where the backend does not tell) of each JAX device.
      accelerators: accelerators that the operating system shows, whether JAX uses them or not.
      host: "cores", "memory_gb" and "disk_free_gb" of the working directory; None where unknown.
      cache: "path", "writable" and "size_mb" of the compilation cache.
      environment: variables that matter to JAX or to us.
    """

    python: str
    versions: Mapping[str, str | None] = field(default_factory=dict)
    conflicts: Sequence[str] = ()
    extras: Mapping[str, bool] = field(default_factory=dict)
    ffmpeg: Mapping[str, str] = field(default_factory=dict)
    h264: bool = True
    errors: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[Mapping[str, Any]] = ()
    accelerators: Sequence[str] = ()
    host: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def gather() -> Facts:
    """Reads the installation and the machine; takes a few seconds, most of them in the probe."""
    core = installation.core_requirements()
    return Facts(
        python=platform.python_version(),
        versions=installation.versions(core),
        conflicts=installation.conflicts(core),
        extras=installation.extras(),
        **machine.probe(),
        accelerators=machine.accelerators(),
        host=machine.host(),
        cache=machine.cache(process.compilation_cache()),
        environment=machine.environment(),
    )

"""Devices that a run can be planned for. Imports no jax."""

import ctypes.util
import dataclasses
import importlib.util
import math

from motionaura_jax.core.errors import UserError, nearest

USABLE = 0.92
"""Share of a device's memory that a program can use; drivers, libraries and fragmentation take the rest."""

GIB = 2**30

SIZES = (16, 24, 40, 80, 141)
"""Memory sizes in GiB for which every estimate states whether the run fits."""

GPU_EXTRA = "gpu-estimate"
"""Extra that holds what XLA needs to compile for a GPU without having one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """Figures of a GPU that XLA needs to compile for it: its data sheet, and the limits of its compute capability.

    Attributes:
      name: name as the driver gives it.
      capability: compute capability, e.g. (8, 0).
      cores: streaming multiprocessors.
      lanes: float32 lanes of each.
      clock: boost clock in GHz.
      bandwidth: bytes per second from and to memory.
      memory: bytes.
      cache: bytes of the second-level cache.
      shared: bytes of shared memory of each core; one block can use 1 KiB less.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    bandwidth: int
    memory: int
    cache: int
    shared: int

    @property
    def target(self) -> str:
        """Return XLA's description of the GPU, a GpuTargetConfigProto as text."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
              memory_bandwidth: {self.bandwidth} device_memory_size: {self.memory} l2_cache_size: {self.cache}
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
              shared_memory_per_block_optin: {self.shared - 1024}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 8 }}
            runtime_version {{ major: 12 minor: 9 patch: 0 }}
            device_description_str: "{self.name}"
        """


_A100 = Gpu(
    name="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    cores=108,
    lanes=64,
    clock=1.41,
    bandwidth=2_039_000_000_000,
    memory=85_050_785_792,
    cache=40 * 2**20,
    shared=164 * 2**10,
)
_A100_40 = dataclasses.replace(_A100, name="NVIDIA A100-SXM4-40GB", bandwidth=1_555_200_000_000, memory=42_331_013_120)
_H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    lanes=128,
    clock=1.98,
    bandwidth=3_352_320_000_000,
    memory=84_929_347_584,
    cache=50 * 2**20,
    shared=228 * 2**10,
)
_H200 = dataclasses.replace(_H100, name="NVIDIA H200", bandwidth=4_800_000_000_000, memory=151_397_597_184)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Kind of device.  Without `host` and `gpu`, its figures come from the program for a CPU.

    Attributes:
      memory: size in GiB.
      host: chips of a TPU host along each axis; None for other devices.
      gpu: figures of a GPU that programs can be compiled for; None for other devices.
    """

    memory: float
    host: tuple[int, ...] | None = None
    gpu: Gpu | None = None

    @property
    def limit(self) -> float:
        """Return the bytes that a program can use."""
        return USABLE * self.memory * GIB


MACHINES = {
    "cpu": Machine(math.inf),
    "t4": Machine(16),
    "v100": Machine(32),
    "l4": Machine(24),
    "rtx4090": Machine(24),
    "a100-40": Machine(40, gpu=_A100_40),
    "a100": Machine(80, gpu=_A100),
    "h100": Machine(80, gpu=_H100),
    "h200": Machine(141, gpu=_H200),
    "v5e": Machine(16, (2, 2)),
    "v6e": Machine(32, (2, 2)),
    "v5p": Machine(95, (2, 2, 1)),
}


def machine(name: str) -> Machine:
    """Return the kind of device called `name`.

    Raises:
      UserError: the name is unknown (suggests the nearest one, and lists all).
    """
    if name not in MACHINES:
        meant, known = nearest(name, MACHINES), f"; known: {', '.join(sorted(MACHINES))}"
        raise UserError(f"--device={name}: no such device{meant if meant == known else meant + known}")
    return MACHINES[name]


def of_kind(kind: str) -> str | None:
    """Return the name of the GPU that the driver calls `kind`, if programs can be compiled for it."""
    return next((name for name, machine in MACHINES.items() if machine.gpu and machine.gpu.name == kind), None)


def topology(name: str, chips: int) -> str | None:
    """Return the name of a topology of `chips` devices that programs can be compiled for, otherwise None.

    That of a TPU is the name that libtpu gives it, e.g. "v5e:4x8"; that of GPUs has slices x hosts x GPUs, "a100:1x1x8".

    Raises:
      UserError: no topology has this number of chips.
    """
    if machine(name).gpu:
        return f"{name}:1x1x{chips}"
    found = machine(name).host
    if found is None:
        return None
    axes = list(found)
    while math.prod(axes) < chips:
        axes[axes.index(min(axes))] *= 2
    if math.prod(axes) != chips:
        raise UserError(
            f"--mesh: {chips} devices form no {name} topology; choose a power of two, at least {math.prod(found)}"
        )
    return f"{name}:{'x'.join(map(str, sorted(axes)))}"


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'pip install -c requirements.txt ".[{extra}]"'


def missing() -> list[str]:
    """Return the packages that compiling for a GPU needs and that are not installed."""
    plugins = any(map(_there, ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")))
    cudnn = _there("nvidia.cudnn") or ctypes.util.find_library("cudnn") is not None
    return [name for name, there in (("jax-cuda12-plugin", plugins), ("nvidia-cudnn-cu12", cudnn)) if not there]


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False

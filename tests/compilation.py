"""Environment variables that set how test programs compile: quickly, or fully optimized as for users."""

from importlib.metadata import version

_FLAGS = "--xla_flags_reset=true --xla_cpu_use_fusion_emitters"  # XLA reads them before compiling each program
_OLD, FUSIONS_AS_USERS_DO = ({"XLA_FLAGS": f"{_FLAGS}={value}"} for value in ("false", "true"))
if not version("jaxlib").startswith("0.10."):  # where those emitters are the only ones left and have no flag
    _OLD, FUSIONS_AS_USERS_DO = {}, {}

QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **_OLD}
"""Takes a third of the time; two programs that do the same may round differently."""

AS_USERS_DO = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", **FUSIONS_AS_USERS_DO}

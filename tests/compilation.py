"""How the programs of tests are compiled, as environment variables: quickly, or as those of users."""

from importlib.metadata import version

QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
AS_USERS_DO = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}

if version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    # Compiles in a third of the time.  XLA takes up its flags again before every program.
    QUICKLY["XLA_FLAGS"] = "--xla_flags_reset=true --xla_cpu_use_fusion_emitters=false"
    AS_USERS_DO["XLA_FLAGS"] = "--xla_flags_reset=true --xla_cpu_use_fusion_emitters=true"

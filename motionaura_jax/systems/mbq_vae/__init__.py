"""The 3D-MBQ-VAE tokenizer.  MotionAura section 3.1."""

from motionaura_jax.systems.mbq_vae.recipe import MBQVAERecipe
from motionaura_jax.systems.mbq_vae.system import MBQVAESystem

__all__ = ["MBQVAERecipe", "MBQVAESystem"]

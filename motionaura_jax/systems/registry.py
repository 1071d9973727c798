"""The systems that a config can name: one line each."""

import importlib

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.systems.base import System

SYSTEMS = {
    "mbq_vae": "motionaura_jax.systems.mbq_vae:MBQVAESystem",
    "text_to_video": "motionaura_jax.systems.text_to_video.system:TextToVideoSystem",
}


def system_class(name: str) -> type[System]:
    """Import the system called `name`.

    Raises:
      UserError: no such system (with the nearest name).
    """
    if not isinstance(name, str) or name not in SYSTEMS:
        raise UserError(f"config.system={name}: no such system{nearest(str(name), SYSTEMS)}")
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)

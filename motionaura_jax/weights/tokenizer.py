"""The one door to a trained tokenizer, for systems that freeze it and pipelines that decode with it."""

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.errors import UserError
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.weights.load import load_tokenizer


def open_tokenizer(path: str, latent_space: str = "") -> Tokenizer:
    """Opens the tokenizer in a workdir or step folder.

    Args:
      latent_space: the one that is expected; empty takes any.

    Raises:
      UserError: no tokenizer there, one without a codebook, or one of another latent space.
    """
    tokenizer, loaded = load_tokenizer(path)
    if not tokenizer.config.vocab_size:
        raise UserError(f"{path}: this tokenizer has no codebook; train one with another model.quantizer than 'none'")
    if latent_space and tokenizer.latent_space != latent_space:
        raise UserError(
            f"{path}: the tokenizer of step {loaded.step} has the latent space {tokenizer.latent_space}, but "
            f"{latent_space} is needed; name the tokenizer that this model was trained with"
        )
    # Restored arrays are committed to a device.  Beside fresh ones, that makes the second training step compile again.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tokenizer)

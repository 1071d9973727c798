"""The one door to a trained tokenizer, for systems that freeze it and pipelines that decode with it."""

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.weights import steps
from motionaura_jax.weights.load import load_tokenizer


def open_tokenizer(path: steps.Location, latent_space: str = "") -> Tokenizer:
    """Opens the tokenizer in a workdir, a step folder or a release folder, or on the hub.

    Args:
      latent_space: the one that is expected; empty takes any.

    Raises:
      UserError: no tokenizer there, one without a codebook, or one of another latent space.
    """
    tokenizer, _ = load_tokenizer(path, latent_space)
    if not tokenizer.config.vocab_size:
        raise UserError(f"{path}: this tokenizer has no codebook; train one with another model.quantizer than 'none'")
    return tokenizer

"""Spectral transformer, which predicts clean tokens from partly masked ones and a text.  MotionAura 3.3."""

from collections.abc import Mapping
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Cond, PyTree
from motionaura_jax.models.denoisers import block
from motionaura_jax.models.denoisers.base import Denoiser, Size
from motionaura_jax.models.denoisers.block import TextMemory
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.denoisers.fold import fold
from motionaura_jax.models.layers import spectral
from motionaura_jax.models.layers.embeddings import (
    GridEmbedding,
    ScalarEmbedding,
    rotary_angles,
    rotary_positions,
    sinusoid,
)
from motionaura_jax.ops.prediction import Prediction
from motionaura_jax.ops.products import dot_general
from motionaura_jax.parallel import constraints, rules

_STDDEV = 0.02
_EPSILON = 1e-6

NOT_DECAYED = frozenset({"gain", "table", "filter", "null"})
"""Leaves without weight decay, besides vectors."""

rules.declare(
    (r"gain$", rules.WHOLE),
    # Attention: heads over `tensor`.
    (r"(into|[kv]_input)/[qkv](_even|_odd)?$", rules.COLUMNS),
    (r"out/o(_even|_odd)?$", rules.ROWS),
    # Multilayer perceptrons and embeddings of scalars.
    (r"(mlp|fps|time)/in/kernel$", rules.COLUMNS),
    (r"(mlp|fps|time)/out/kernel$", rules.ROWS),
    # Unpaired, but applied to one vector per clip: gathering the activations costs little next to the kernels.
    (r"(condition/project|modulation/(down|up))/kernel$", rules.ROWS),
    # Adapters: small next to the kernels that they adapt, so each device computes them whole.
    (r"([qkvo]_)?lora_(down|up)(_even|_odd)?$", rules.STORED),
    # Whole along `tensor`: a row-split head would gather the gradients of all tokens, a split table the logits.
    (r"(embedding/table|head/dense/kernel)$", rules.STORED),
    (r"(filter|null|position/kernel|head/bias)$", rules.VECTOR),
    (r"(embedding/mask|modulation/table)$", rules.VECTOR),
)


class SpectralTransformer(Denoiser):
    """Denoiser for token grids of any size.

    With `folded`, it takes the parameters returned by `fold` and computes the same values with less work.  Sampling always
    uses this form.  Training uses it with `config.folded_training`, and on meshes that split the tokens, where only
    transforms along the sequence alone leave the channels free to be split.
    """

    config: SpectralTransformerConfig
    folded: bool = False

    def setup(self) -> None:
        config = self.config
        self.embedding = TokenEmbedding(config)
        self.condition = Conditioning(config)
        self.text = TextEncoder(config)
        self.trunk = Trunk(config, self.folded)
        self.head = Head(config)

    def __call__(
        self, x_t: Int[Array, "b t h w"], level: Float[Array, " b"], cond: Cond, memory: TextMemory | None = None
    ) -> Prediction:
        """Return the factors of the logits over the K codes at every position.

        Args:
          x_t: tokens in [0, K]; K is MASK.
          level: expected masked fraction, in [0, 1].
          cond: `scalars["fps"]` (frames per second, positive), `tokens` (text features) and `token_mask`.  `tokens` of
            None, or a mask that is False throughout a sample, stands for the null text: learned, or zero.
          memory: result of `encode_cond(cond)`, used in place of the text in `cond`; batch size 1 serves any batch.

        Raises:
          UserError: no fps, or text features that do not fit the settings.
        """
        batch, *grid = x_t.shape
        memory = self.encode_cond(cond) if memory is None else memory
        with jax.default_matmul_precision(self.config.matmul_precision):
            z = self.embedding(x_t).reshape(batch, -1, self.config.width)
            z = self.trunk(z, (grid[0], grid[1], grid[2]), self.condition(level, cond), memory)
            values, bias = self.head(z)
            return Prediction(values=values, table=self.embedding.table, bias=bias, grid=tuple(grid))

    def encode_cond(self, cond: Cond) -> TextMemory:
        """Return keys and values of the text for all blocks; they depend neither on the level nor on the tokens."""
        with jax.default_matmul_precision(self.config.matmul_precision):
            return self.text(cond)

    @property
    def training(self) -> Self:
        """Return the form of the network that training runs."""
        return self.inference if self._trains_folded else self

    @property
    def inference(self) -> Self:
        """Return the folded network."""
        return self.clone(folded=True)

    @nn.nowrap
    def for_training(self, params: PyTree) -> PyTree:
        """Return the parameters of `training`."""
        # Devices along `sequence` share the folding, and exchange kernels in the dtype to which the layers would cast them.
        dtype = jnp.dtype(self.config.dtype) if constraints.axis_size("sequence") > 1 else None
        return self._folded(params, dtype) if self._trains_folded else params

    @nn.nowrap
    def for_inference(self, params: PyTree) -> PyTree:
        """Return the parameters with transforms along the embedding merged into the kernels."""
        return self._folded(params, None)

    @nn.nowrap
    def _folded(self, params: PyTree, dtype: jnp.dtype | None) -> PyTree:
        with jax.default_matmul_precision("float32"):  # the kernels keep their rounding for the whole run
            return constraints.placed(fold(params, self.config, dtype))

    @property
    def _trains_folded(self) -> bool:
        return self.config.folded_training or constraints.axis_size("sequence") > 1

    @nn.nowrap
    def example(self) -> tuple[Int[Array, "1 t h w"], Float[Array, " 1"], Cond]:
        """Return arguments of a call on few tokens."""
        config = self.config
        text = jnp.zeros((1, config.text_len, config.text_dim), config.dtype)
        cond = Cond(tokens=text, token_mask=jnp.zeros(text.shape[:2], bool), scalars={"fps": jnp.ones(1)})
        devices = constraints.axis_size("sequence")  # must divide the number of tokens
        return jnp.zeros((1, 2, 2, 2 * devices), jnp.int32), jnp.ones(1), cond

    @nn.nowrap
    def check_mesh(self, sizes: Mapping[str, int], grid: Size) -> None:
        """Check a mesh for clips of `grid`; see `SpectralTransformerConfig.check_mesh`."""
        self.config.check_mesh(sizes, grid)


class TokenEmbedding(nn.Module):
    """Embedding of codes, MASK and positions; `table` is shared with the head."""

    config: SpectralTransformerConfig

    def setup(self) -> None:
        config, init = self.config, nn.initializers.normal(_STDDEV)
        self.table = self.param("table", init, (config.vocab_size, config.width))
        self.mask = self.param("mask", init, (config.width,))
        if config.abs_pos:
            self.position = GridEmbedding(config.width, _STDDEV)

    def __call__(self, tokens: Int[Array, "b t h w"]) -> Float[Array, "b t h w d"]:
        config = self.config
        _, t, h, w = tokens.shape
        # MASK has its own parameter, so that the number of table rows stays divisible for sharding.
        z = jnp.take(self.table, jnp.minimum(tokens, config.vocab_size - 1), axis=0)
        z = jnp.where((tokens == config.vocab_size)[..., None], self.mask, z)
        if config.rope == "sinusoidal":
            z = z + _STDDEV * 2**0.5 * sinusoid(jnp.arange(t * h * w), config.width).reshape(t, h, w, -1)
        if config.abs_pos:
            z = z + self.position((t, h, w))
        return z.astype(config.dtype)


class Conditioning(nn.Module):
    """Embedding of masked fraction and frame rate, projected once for all blocks with `adaln='single'`."""

    config: SpectralTransformerConfig

    @nn.compact
    def __call__(self, m: Float[Array, " b"], cond: Cond) -> Float[Array, "b c"]:
        config = self.config
        if "fps" not in cond.scalars:
            raise UserError("Cond.scalars has no 'fps'; give the frame rate of each clip")
        # One unit of the sinusoid's argument is 1/1000 in masked fraction and 1/64 octave in frame rate.
        condition = ScalarEmbedding(config.width, name="fps")(64 * jnp.log2(cond.scalars["fps"]))
        if config.time_cond:
            condition = condition + ScalarEmbedding(config.width, name="time")(1000 * m)
        if config.adaln != "single":
            return condition
        width = block.modulation_count(config) * config.width
        return nn.Dense(width, kernel_init=nn.initializers.zeros, name="project")(nn.silu(condition))


class TextEncoder(nn.Module):
    """Projection of text features to the network's width, and from there to the keys and values of every block."""

    config: SpectralTransformerConfig

    @nn.compact
    def __call__(self, cond: Cond) -> TextMemory:
        config = self.config
        project = nn.Dense(config.width, dtype=jnp.dtype(config.dtype), name="project")
        tokens, mask = self._content(cond)
        text = jnp.where(mask[..., None], project(tokens), 0)
        given = mask.any(axis=-1, keepdims=True)
        if config.learned_null:
            null = self.param("null", nn.initializers.normal(_STDDEV), (config.text_len, config.width))
            text = jnp.where(given[..., None], text, null.astype(config.dtype))
        scanned = nn.scan(
            block.KeysValues,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.blocks,
            unroll=1 if config.scan else config.blocks,
        )
        _, (keys, values) = scanned(config, name="blocks")(text, None)
        # The transform mixes padding into every bin, where no mask can remove it.  So padding is zero and all bins are visible.
        return TextMemory(keys, values, None if config.cross_kind != "none" else mask | ~given)

    def _content(self, cond: Cond) -> tuple[Float[Array, "b l d"], Array]:
        """Return text features padded to `text_len`, and a mask that is True at content."""
        config = self.config
        if cond.tokens is None:
            empty = jnp.zeros((1, config.text_len, config.text_dim), config.dtype)
            return empty, jnp.zeros((1, config.text_len), bool)
        batch, length, width = cond.tokens.shape
        if length > config.text_len or width != config.text_dim:
            raise UserError(
                f"text features have {length} positions of width {width}; this model takes up to {config.text_len} "
                f"(model.text_len) of width {config.text_dim} (model.text_dim)"
            )
        mask = jnp.ones((batch, length), bool) if cond.token_mask is None else cond.token_mask
        missing = config.text_len - length
        return jnp.pad(cond.tokens, ((0, 0), (0, missing), (0, 0))), jnp.pad(mask, ((0, 0), (0, missing)))


class Trunk(nn.Module):
    """The blocks, with their parameters stacked along a leading axis."""

    config: SpectralTransformerConfig
    folded: bool

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b s d"],
        grid: tuple[int, int, int],
        condition: Float[Array, "b c"],
        memory: TextMemory,
    ) -> Float[Array, "b s d"]:
        config, batch = self.config, z.shape[0]
        context = tuple(jnp.broadcast_to(x, (x.shape[0], batch, *x.shape[2:])) for x in memory[:2])
        mask = None if memory.mask is None else jnp.broadcast_to(memory.mask, (batch, memory.mask.shape[1]))
        scanned = nn.scan(
            block.remat(block.Block, config.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.blocks,
            unroll=1 if config.scan else config.blocks,
        )
        blocks = scanned(config, grid, self.folded, name="blocks")
        return constraints.tokens(blocks(constraints.tokens(z), context, condition, self._angle(grid), mask)[0])

    def _angle(self, grid: tuple[int, int, int]) -> Float[Array, "s half"] | None:
        config = self.config
        if config.rotary == "sinusoidal":
            return None
        kind = "axial" if config.rotary == "axial" else "flat1d"
        signed = config.rotary == "signed" or (config.rotary == "axial" and config.spectral == "hartley3d")
        coordinates = rotary_positions(kind, grid, signed=signed)
        if self.folded and config.spectral in spectral.FOLDED_KINDS:
            coordinates = coordinates[spectral.paired_order(len(coordinates))]
        return rotary_angles(coordinates, config.head_dim)


class Head(nn.Module):
    """LayerNorm, Linear and GELU: features whose products with the token table are the logits, and their bias, if any."""

    config: SpectralTransformerConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b s d"]) -> tuple[Float[Array, "b s d"], Float[Array, " k"] | None]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        z = nn.LayerNorm(epsilon=_EPSILON, dtype=jnp.float32, name="norm")(z)
        z = nn.gelu(nn.Dense(config.width, dtype=dtype, dot_general=dot_general, name="dense")(z))
        if config.head_norm:
            z = nn.LayerNorm(epsilon=_EPSILON, dtype=jnp.float32, name="output_norm")(z).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,)) if config.output_bias else None
        return z, bias

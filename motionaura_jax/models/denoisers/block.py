"""Block of the spectral transformer, and the text memory it attends to.  MotionAura equations 2-5."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.layers import lora, spectral
from motionaura_jax.models.layers.attention import Attention, normalize
from motionaura_jax.models.layers.config import LoraConfig
from motionaura_jax.ops.attention import split_heads
from motionaura_jax.ops.dispatch import on_cpu
from motionaura_jax.ops.products import dot_general
from motionaura_jax.parallel import constraints

Tokens = Float[Array, "b s d"]
Vector = Float[Array, "b 1 d"]

_RANK = 256
_HOST = "pinned_host"
_EPSILON = 1e-6


class TextMemory(NamedTuple):
    """Keys and values of a text for the cross-attention of all blocks, computed once per prompt.

    Attributes:
      keys, values: `(block, batch, length, head, channel)`; keys are normalized.
      mask: True at content, `(batch, length)`; None if padding takes part as zeros.
    """

    keys: Float[Array, "n b l h c"]
    values: Float[Array, "n b l h c"]
    mask: Bool[Array, "b l"] | None


class KeysValues(nn.Module):
    """Keys and values of one block's cross-attention, each through its own learned transform (equation 4)."""

    config: SpectralTransformerConfig

    @nn.compact
    def __call__(self, text: Tokens, _: None) -> tuple[Tokens, tuple[Array, Array]]:
        config, kind = self.config, self.config.cross_kind
        # Text has no grid; its frequencies are those of the flat sequence.
        kind = "hartley" if kind == "hartley3d" else kind
        key, value = (
            spectral.SpectralInput(
                (name,),
                config.inner,
                kind,
                (1, 1, 1),
                kind != "none",
                jnp.dtype(config.dtype),
                config.heads,
                config.lora,
                name=f"{name}_input",
            )(text)[0]
            for name in "kv"
        )
        return text, (normalize(split_heads(key, config.heads)), split_heads(value, config.heads))


class Modulation(nn.Module):
    """Modulation of one block: `count` vectors of width d (shifts, scales and gates), computed from the condition.

    All vectors start at zero, so a block starts with shift 0, scale factor 1 and gate 0.
    """

    config: SpectralTransformerConfig
    count: int

    @nn.compact
    def __call__(self, condition: Float[Array, "b c"]) -> list[Vector]:
        width, zeros = self.count * self.config.width, nn.initializers.zeros
        if self.config.adaln == "single":
            vectors = condition + self.param("table", zeros, (width,))
        else:
            hidden = nn.silu(condition)
            if self.config.adaln == "lowrank256":
                hidden = nn.Dense(_RANK, use_bias=False, name="down")(hidden)
            vectors = nn.Dense(width, kernel_init=zeros, name="up")(hidden)
        return list(_evaluated(rearrange(vectors, "b (n d) -> n b 1 d", n=self.count)))


def _evaluated(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Materialize `x` on a CPU, where XLA would otherwise fuse its computation into every consumer and repeat it per token.

    A barrier alone does not help: XLA drops it before fusion.  XLA does not fuse across a loop.
    """
    return jax.lax.map(jax.lax.optimization_barrier, x) if on_cpu() else x


def modulation_count(config: SpectralTransformerConfig) -> int:
    """Return the number of modulation vectors of a block: shift and scale of three norms, plus the gates of `residual`."""
    return 9 if config.residual == "identity" else 7


class Mlp(nn.Module):
    """Linear, GELU, Linear; the adapter reads the output and is added to it."""

    hidden: int
    dtype: jnp.dtype
    lora: LoraConfig

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        hidden = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, dot_general=dot_general, name="in")(x))
        last = nn.Dense(x.shape[-1], dtype=self.dtype, dot_general=dot_general, name="out")
        y = last(hidden)
        if self.lora.adapts("mlp"):
            y += lora.low_rank(self, "", self.lora, y, last.variables["params"]["kernel"])
        return y


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention to text and MLP, each after an adaptive norm.

    With `folded`, the attention layers hold the kernels made by `fold`; nothing else changes.
    """

    config: SpectralTransformerConfig
    grid: spectral.Grid
    folded: bool

    @nn.compact
    def __call__(
        self,
        z: Tokens,
        context: tuple[Array, Array],
        condition: Float[Array, "b c"],
        angle: Float[Array, "s half"] | None,
        mask: Bool[Array, "b l"] | None,
    ) -> tuple[Tokens, None]:
        config, z = self.config, constraints.tokens(z)
        vectors = Modulation(config, modulation_count(config), name="modulation")(condition)
        self_attention = self._attention("self_attention", config.spectral, ("q", "k", "v"))
        cross_attention = self._attention("cross_attention", config.cross_kind, ("q",))
        mlp = Mlp(round(config.mlp_ratio * config.width), jnp.dtype(config.dtype), config.lora, name="mlp")
        adapted = self._adapt(z, vectors[0], vectors[1])
        if config.residual == "paper":
            z = self._norm("self_norm", self_attention(adapted, angle=angle)) + adapted
            crossed = self._norm("cross_norm", cross_attention(z, context=context, mask=mask))
            z = crossed + self._adapt(z, vectors[2], vectors[3])
            return constraints.tokens(z + self._gate(vectors[6], mlp(self._adapt(z, vectors[4], vectors[5])))), None
        z = z + self._gate(vectors[6], self_attention(adapted, angle=angle))
        adapted = self._adapt(z, vectors[2], vectors[3])
        z = z + self._gate(vectors[7], cross_attention(adapted, context=context, mask=mask))
        return constraints.tokens(z + self._gate(vectors[8], mlp(self._adapt(z, vectors[4], vectors[5])))), None

    def _attention(self, name: str, kind: str, names: tuple[str, ...]) -> Attention:
        config = self.config
        common: dict[str, Any] = {
            "dtype": jnp.dtype(config.dtype),
            "heads": config.heads,
            "lora": config.lora,
            "parent": None,
        }
        learned = kind == "filter" or (kind != "none" and name == "cross_attention")
        into: nn.Module
        out: nn.Module
        if self.folded and kind in spectral.FOLDED_KINDS:
            half = kind == "re_fft2" and not learned
            into = spectral.FoldedInput(names, config.inner, half, **common)
            out = spectral.FoldedOutput(config.width, kind != "hartley", **common)
        else:
            into = spectral.SpectralInput(names, config.inner, kind, self.grid, learned, **common)
            out = spectral.SpectralOutput(config.width, kind, self.grid, **common)
        return Attention(config.heads, config.initial_gain, into, out, name=name)

    def _adapt(self, z: Tokens, shift: Vector, scale: Vector) -> Tokens:
        normed = nn.LayerNorm(epsilon=_EPSILON, use_bias=False, use_scale=False, dtype=jnp.float32)(z)
        return (normed * (1 + scale) + shift).astype(z.dtype)

    def _norm(self, name: str, x: Tokens) -> Tokens:
        return nn.LayerNorm(epsilon=_EPSILON, dtype=jnp.float32, name=name)(x).astype(x.dtype)

    def _gate(self, gate: Vector, update: Tokens) -> Tokens:
        return gate.astype(update.dtype) * update


def remat(block: type[nn.Module], what: str) -> type[nn.Module]:
    """Wrap `block` so that the backward pass recomputes what `config.remat` selects."""
    return block if what == "none" else nn.remat(block, prevent_cse=False, policy=_policy(what))


def _policy(what: str) -> Callable[..., Any] | None:
    """Return the policy for what a block saves for the backward pass besides its inputs.

    Raises:
      UserError: no host memory to offload to.
    """
    policies = jax.checkpoint_policies
    if what == "full":
        return None
    if what == "dots":
        return policies.dots_with_no_batch_dims_saveable
    device = jax.local_devices()[0]
    if _HOST not in (memory.kind for memory in device.addressable_memories()):
        raise UserError(f"config.model.remat=offload: {device.device_kind} has no {_HOST} memory; use dots or full")
    return policies.offload_dot_with_no_batch_dims("device", _HOST)

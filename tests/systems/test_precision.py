"""Sensitive operations stay float32 under bfloat16 compute: transforms, softmax, norms, code distances, losses."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from motionaura_jax.core import config
from motionaura_jax.systems import registry
from tests.systems import tiny

CODES = 19  # a size that no other axis has
WIDE = {jnp.dtype(name) for name in ("float32", "complex64")}

# Primitives of softmax, log-sum-exp, norms and transforms.
FRAGILE = ("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "fft", "argmax", "argmin", "cumsum", "erf_inv")


def equations(jaxpr):
    """Yield all equations of a program, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def program(system):
    """Return all equations of loss and gradient, and the dtypes of their results."""
    key = jax.random.key(0)
    params, extra = jax.eval_shape(system.init, key)
    gradient = jax.value_and_grad(system.loss, has_aux=True)
    arguments = (params, extra, system.frozen(), system.batch_spec(), key, jnp.int32(0))
    closed, results = jax.make_jaxpr(gradient, return_shape=True)(*arguments)
    return list(equations(closed.jaxpr)), results


def make(values):
    system_class = registry.system_class(values["system"])
    return system_class(config.build(system_class.Recipe, values))


@pytest.fixture(scope="module", params=["text_to_video", "mbq_vae"])
def system(request, tmp_path_factory):
    model = {**tiny.TOKENIZER, "codebook_size": CODES, "dec_mb": [0, 1]}
    if request.param == "mbq_vae":
        return make({"system": "mbq_vae", "data": tiny.SIZE, "model": {**model, "dtype": "bfloat16"}})
    tokenizer = tiny.save_tokenizer(tmp_path_factory.mktemp("tokenizer"), codebook_size=CODES)
    return make(
        tiny.text_to_video(
            tokenizer, model={"dtype": "bfloat16", "spectral": "filter", "remat": "dots", "loss_chunk": CODES}
        )
    )


@pytest.fixture(scope="module")
def traced(system):
    return program(system)


def floats(equation):
    kinds = [variable.aval.dtype for variable in (*equation.invars, *equation.outvars)]
    return {kind for kind in kinds if jnp.issubdtype(kind, jnp.inexact)}


def test_the_network_computes_in_bfloat16(traced):
    kinds = Counter(
        equation.invars[0].aval.dtype.name
        for equation in traced[0]
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    )
    assert kinds["bfloat16"] > kinds.total() / 2


def test_fragile_primitives_are_float32(traced):
    narrow = {
        (equation.primitive.name, kind.name)
        for equation in traced[0]
        if equation.primitive.name in FRAGILE
        for kind in floats(equation) - WIDE
    }
    assert narrow == set()


def test_scores_of_codes_are_float32(system, traced):
    """Distances to codes in the tokenizer have float32 factors too; logits are float32 sums."""
    scores = [
        equation
        for equation in traced[0]
        if equation.primitive.name == "dot_general" and equation.outvars[0].aval.shape[-1:] == (CODES,)
    ]
    assert scores
    for equation in scores:
        assert equation.outvars[0].aval.dtype == jnp.float32
        assert system.recipe.system == "text_to_video" or floats(equation) == {jnp.dtype("float32")}


def test_losses_metrics_and_gradients_are_float32(traced):
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(traced[1]) if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    assert kinds == {"float32"}

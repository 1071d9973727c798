"""Published SigLIP tensors, in a file of one tower or of both."""

from motionaura_jax.weights.layout import Layout, Rule, conv, linear
from motionaura_jax.weights.maps.transformer import COUNTERS, LAYERS, TEXT, dense, norm

_SHARED = ("logit_scale", "logit_bias")

VISION = Layout(
    rules=(
        Rule("embeddings.patch_embedding.weight", "patches/projection/kernel", conv),
        Rule("embeddings.patch_embedding.bias", "patches/projection/bias"),
        Rule("embeddings.position_embedding.weight", "places"),
        *LAYERS,
        *norm("post_layernorm", "norm"),
        Rule("head.probe", "pool/probe"),
        Rule("head.attention.in_proj_weight", "pool/input_kernel", linear()),
        Rule("head.attention.in_proj_bias", "pool/input_bias"),
        *dense("head.attention.out_proj", "pool/output"),
        *norm("head.layernorm", "pool/norm"),
        *dense("head.mlp.fc1", "pool/mlp/up"),
        *dense("head.mlp.fc2", "pool/mlp/down"),
    ),
    prefixes=("vision_model.",),
    ignored=("text_model.*", *_SHARED, *COUNTERS),
)
TEXT_TOWER = Layout(
    rules=(*TEXT, *dense("head", "head")),
    prefixes=("text_model.",),
    ignored=("vision_model.*", *_SHARED, *COUNTERS),
)

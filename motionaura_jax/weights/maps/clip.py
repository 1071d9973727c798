"""Published CLIP tensors, in a file of one tower or of both."""

from motionaura_jax.weights.layout import Layout, Rule, conv, linear
from motionaura_jax.weights.maps.transformer import COUNTERS, LAYERS, TEXT, norm

VISION = Layout(
    rules=(
        Rule("embeddings.class_embedding", "class"),
        Rule("embeddings.patch_embedding.weight", "patches/projection/kernel", conv),
        Rule("embeddings.position_embedding.weight", "places"),
        *norm("pre_layrnorm", "first_norm"),
        *LAYERS,
        *norm("post_layernorm", "norm"),
        Rule("visual_projection.weight", "projection/kernel", linear()),
    ),
    prefixes=("vision_model.",),
    ignored=("text_model.*", "text_projection.weight", "logit_scale", *COUNTERS),
)
TEXT_TOWER = Layout(
    rules=(*TEXT, Rule("text_projection.weight", "projection/kernel", linear())),
    prefixes=("text_model.",),
    ignored=("vision_model.*", "visual_projection.weight", "logit_scale", *COUNTERS),
)

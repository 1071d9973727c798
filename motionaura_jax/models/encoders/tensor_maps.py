"""Tensor maps of the text and vision encoders: torch names of T5, SigLIP and CLIP as published, and of our own."""

from collections.abc import Collection

from motionaura_jax.core.tensor_map import Rule, TensorMap, conv, layer, linear, norm

_LAYER = "encoder.layers.{i}"


# The transformer that SigLIP and CLIP share.
_LAYERS = (
    *norm(f"{_LAYER}.layer_norm1", "transformer/blocks/attention_norm"),
    *layer(f"{_LAYER}.self_attn.q_proj", "transformer/blocks/query"),
    *layer(f"{_LAYER}.self_attn.k_proj", "transformer/blocks/key"),
    *layer(f"{_LAYER}.self_attn.v_proj", "transformer/blocks/value"),
    *layer(f"{_LAYER}.self_attn.out_proj", "transformer/blocks/output"),
    *norm(f"{_LAYER}.layer_norm2", "transformer/blocks/mlp_norm"),
    *layer(f"{_LAYER}.mlp.fc1", "transformer/blocks/mlp/up"),
    *layer(f"{_LAYER}.mlp.fc2", "transformer/blocks/mlp/down"),
)
_TEXT = (
    Rule("embeddings.token_embedding.weight", "embedding/words"),
    Rule("embeddings.position_embedding.weight", "embedding/places"),
    *norm("final_layer_norm", "norm"),
    *_LAYERS,
)
_COUNTERS = ("*position_ids",)  # 0, 1, 2, ..., which old files hold

_SIGLIP_SCALES = ("logit_scale", "logit_bias")

SIGLIP_VISION = TensorMap(
    rules=(
        Rule("embeddings.patch_embedding.weight", "patches/projection/kernel", conv),
        Rule("embeddings.patch_embedding.bias", "patches/projection/bias"),
        Rule("embeddings.position_embedding.weight", "places"),
        *_LAYERS,
        *norm("post_layernorm", "norm"),
        Rule("head.probe", "pool/probe"),
        Rule("head.attention.in_proj_weight", "pool/input_kernel", linear()),
        Rule("head.attention.in_proj_bias", "pool/input_bias"),
        *layer("head.attention.out_proj", "pool/output"),
        *norm("head.layernorm", "pool/norm"),
        *layer("head.mlp.fc1", "pool/mlp/up"),
        *layer("head.mlp.fc2", "pool/mlp/down"),
    ),
    prefixes=("vision_model.",),
    ignored=("text_model.*", *_SIGLIP_SCALES, *_COUNTERS),
)
SIGLIP_TEXT = TensorMap(
    rules=(*_TEXT, *layer("head", "head")),
    prefixes=("text_model.",),
    ignored=("vision_model.*", *_SIGLIP_SCALES, *_COUNTERS),
)

CLIP_VISION = TensorMap(
    rules=(
        Rule("embeddings.class_embedding", "class"),
        Rule("embeddings.patch_embedding.weight", "patches/projection/kernel", conv),
        Rule("embeddings.position_embedding.weight", "places"),
        *norm("pre_layrnorm", "first_norm"),
        *_LAYERS,
        *norm("post_layernorm", "norm"),
        Rule("visual_projection.weight", "projection/kernel", linear()),
    ),
    prefixes=("vision_model.",),
    ignored=("text_model.*", "text_projection.weight", "logit_scale", *_COUNTERS),
)
CLIP_TEXT = TensorMap(
    rules=(*_TEXT, Rule("text_projection.weight", "projection/kernel", linear())),
    prefixes=("text_model.",),
    ignored=("vision_model.*", "visual_projection.weight", "logit_scale", *_COUNTERS),
)

_ATTENTION = "encoder.block.{i}.layer.0"
_MLP = "encoder.block.{i}.layer.1"


def t5(names: Collection[str]) -> TensorMap:
    """Return the map of a T5 file with these tensors; the embedding has two names and may carry both."""
    embedding = "shared.weight" if "shared.weight" in names else "encoder.embed_tokens.weight"
    kernels = {
        "attention/query": f"{_ATTENTION}.SelfAttention.q",
        "attention/key": f"{_ATTENTION}.SelfAttention.k",
        "attention/value": f"{_ATTENTION}.SelfAttention.v",
        "mlp/gate": f"{_MLP}.DenseReluDense.wi_0",
        "mlp/up": f"{_MLP}.DenseReluDense.{'wi_1' if any('.wi_1.' in name for name in names) else 'wi'}",
        "mlp/out": f"{_MLP}.DenseReluDense.wo",
    }
    return TensorMap(
        rules=(
            Rule(embedding, "embedding"),
            Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "relative_bias"),
            *(Rule(f"{source}.weight", f"blocks/{leaf}/kernel", linear()) for leaf, source in kernels.items()),
            Rule(f"{_ATTENTION}.SelfAttention.o.weight", "blocks/attention/output/kernel", linear(2)),
            Rule(f"{_ATTENTION}.layer_norm.weight", "blocks/attention_norm/scale"),
            Rule(f"{_MLP}.layer_norm.weight", "blocks/mlp_norm/scale"),
            Rule("encoder.final_layer_norm.weight", "norm/scale"),
        ),
        ignored=("decoder.*", "lm_head.*", *({"encoder.embed_tokens.weight"} - {embedding})),
    )


# The text encoder that trains with a denoiser: `exporters.pytorch.modeling_text_encoder`.
TEXT_ENCODER = TensorMap(
    rules=(
        Rule("embedding.weight", "embedding"),
        Rule("relative_bias.weight", "relative_bias"),
        Rule("layers.{i}.attention_norm.weight", "attention_norm_{i}/scale"),
        Rule("layers.{i}.mlp_norm.weight", "mlp_norm_{i}/scale"),
        *(
            Rule(f"layers.{{i}}.attention.{name}.weight", f"attention_{{i}}/{name}/kernel", linear())
            for name in ("query", "key", "value")
        ),
        Rule("layers.{i}.attention.output.weight", "attention_{i}/output/kernel", linear(2)),
        *(Rule(f"layers.{{i}}.{name}.weight", f"mlp_{{i}}/{name}/kernel", linear()) for name in ("gate", "up", "out")),
        Rule("norm.weight", "norm/scale"),
    )
)

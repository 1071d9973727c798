"""Published tensors of the transformer that SigLIP and CLIP share."""

from motionaura_jax.weights.layout import Rule, linear, same

_LAYERS = "encoder.layers.{i}"


def dense(source: str, target: str) -> tuple[Rule, Rule]:
    """Kernel and bias."""
    return Rule(f"{source}.weight", f"{target}/kernel", linear()), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Scale and bias."""
    return Rule(f"{source}.weight", f"{target}/scale", same), Rule(f"{source}.bias", f"{target}/bias")


LAYERS = (
    *norm(f"{_LAYERS}.layer_norm1", "transformer/blocks/attention_norm"),
    *dense(f"{_LAYERS}.self_attn.q_proj", "transformer/blocks/query"),
    *dense(f"{_LAYERS}.self_attn.k_proj", "transformer/blocks/key"),
    *dense(f"{_LAYERS}.self_attn.v_proj", "transformer/blocks/value"),
    *dense(f"{_LAYERS}.self_attn.out_proj", "transformer/blocks/output"),
    *norm(f"{_LAYERS}.layer_norm2", "transformer/blocks/mlp_norm"),
    *dense(f"{_LAYERS}.mlp.fc1", "transformer/blocks/mlp/up"),
    *dense(f"{_LAYERS}.mlp.fc2", "transformer/blocks/mlp/down"),
)
TEXT = (
    Rule("embeddings.token_embedding.weight", "embedding/words"),
    Rule("embeddings.position_embedding.weight", "embedding/places"),
    *norm("final_layer_norm", "norm"),
    *LAYERS,
)
COUNTERS = ("*position_ids",)  # 0, 1, 2, ..., which old files hold

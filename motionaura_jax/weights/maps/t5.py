"""Published T5 tensors."""

from collections.abc import Collection

from motionaura_jax.weights.layout import Layout, Rule, linear

_ATTENTION = "encoder.block.{i}.layer.0"
_MLP = "encoder.block.{i}.layer.1"


def layout(names: Collection[str]) -> Layout:
    """The rules for a file with these tensors: the embedding has two names, and may have both."""
    embedding = "shared.weight" if "shared.weight" in names else "encoder.embed_tokens.weight"
    kernels = {
        "attention/query": f"{_ATTENTION}.SelfAttention.q",
        "attention/key": f"{_ATTENTION}.SelfAttention.k",
        "attention/value": f"{_ATTENTION}.SelfAttention.v",
        "mlp/gate": f"{_MLP}.DenseReluDense.wi_0",
        "mlp/up": f"{_MLP}.DenseReluDense.{'wi_1' if any('.wi_1.' in name for name in names) else 'wi'}",
        "mlp/out": f"{_MLP}.DenseReluDense.wo",
    }
    return Layout(
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

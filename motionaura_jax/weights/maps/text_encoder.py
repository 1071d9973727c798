"""The jointly trained text encoder: `exporters.pytorch.modeling_text_encoder` <-> `text` of text to video."""

from motionaura_jax.weights.layout import Layout, Rule, linear

TEXT_ENCODER = Layout(
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

"""The spectral transformer: `exporters.pytorch.modeling_spectral_transformer` <-> `denoiser` of text to video."""

from motionaura_jax.core.tensor_map import Rule, TensorMap, dense, linear, norm


def _attention(name: str) -> tuple[Rule, ...]:
    source, target = f"blocks.{{i}}.{name}", f"trunk/blocks/{name}"
    return (
        Rule(f"{source}.gain", f"{target}/gain"),
        Rule(f"{source}.input.filter", f"{target}/into/filter"),
        *(Rule(f"{source}.input.to_{part}.weight", f"{target}/into/{part}", linear()) for part in "qkv"),
        Rule(f"{source}.output.to_out.weight", f"{target}/out/o", linear()),
    )


def _context(name: str) -> tuple[Rule, ...]:
    source, target = f"blocks.{{i}}.context.{name}", f"text/blocks/{name[0]}_input"
    return (
        Rule(f"{source}.filter", f"{target}/filter"),
        Rule(f"{source}.to_{name[0]}.weight", f"{target}/{name[0]}", linear()),
    )


def _low_rank(source: str, target: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{source}.lora_A.weight", f"{target}lora_down", linear()),
        Rule(f"{source}.lora_B.weight", f"{target}lora_up", linear()),
    )


def _attention_adapters(name: str, inputs: str) -> tuple[Rule, ...]:
    source, target = f"blocks.{{i}}.{name}", f"trunk/blocks/{name}"
    rules = (_low_rank(f"{source}.input.to_{part}", f"{target}/into/{part}_") for part in inputs)
    return sum(rules, _low_rank(f"{source}.output.to_out", f"{target}/out/o_"))


ADAPTERS = TensorMap(
    prefixes=("base_model.model.",),
    rules=(
        *_attention_adapters("self_attention", "qkv"),
        *_attention_adapters("cross_attention", "q"),
        *_low_rank("blocks.{i}.context.key.to_k", "text/blocks/k_input/k_"),
        *_low_rank("blocks.{i}.context.value.to_v", "text/blocks/v_input/v_"),
        *_low_rank("blocks.{i}.mlp", "trunk/blocks/mlp/"),
    ),
)
"""Rules for adapters alone, under their PEFT names."""

_MODULATION, _OURS = "blocks.{i}.modulation", "trunk/blocks/modulation"

SPECTRAL_TRANSFORMER = TensorMap(
    rules=(
        Rule("token_embedding.weight", "embedding/table"),
        Rule("mask_embedding", "embedding/mask"),
        Rule("position_embedding", "embedding/position/kernel"),
        *dense("fps_embedding.linear_1", "condition/fps/in"),
        *dense("fps_embedding.linear_2", "condition/fps/out"),
        *dense("time_embedding.linear_1", "condition/time/in"),
        *dense("time_embedding.linear_2", "condition/time/out"),
        *dense("condition_projection", "condition/project"),
        Rule("null_text", "text/null"),
        *dense("text_projection", "text/project"),
        *_context("key"),
        *_context("value"),
        Rule(f"{_MODULATION}.table", f"{_OURS}/table"),
        Rule(f"{_MODULATION}.down.weight", f"{_OURS}/down/kernel", linear()),
        *dense(f"{_MODULATION}.up", f"{_OURS}/up"),
        *_attention("self_attention"),
        *_attention("cross_attention"),
        *dense("blocks.{i}.mlp.linear_1", "trunk/blocks/mlp/in"),
        *dense("blocks.{i}.mlp.linear_2", "trunk/blocks/mlp/out"),
        *norm("blocks.{i}.self_norm", "trunk/blocks/self_norm"),
        *norm("blocks.{i}.cross_norm", "trunk/blocks/cross_norm"),
        *norm("head_norm", "head/norm"),
        *dense("head", "head/dense"),
        *norm("output_norm", "head/output_norm"),
        Rule("output_bias", "head/bias"),
        *ADAPTERS.rules,
    )
)

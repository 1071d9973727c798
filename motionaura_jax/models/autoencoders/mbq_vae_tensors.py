"""The 3D-MBQ-VAE: `exporters.pytorch.modeling_mbq_vae` <-> params `tokenizer` and `extra` of its system."""

from motionaura_jax.core.tensor_map import Rule, TensorMap, View, conv, conv_transpose, depthwise, linear, same


def _layer(source: str, target: str, view: View) -> tuple[Rule, Rule]:
    """A layer with a bias."""
    return Rule(f"{source}.weight", f"{target}/kernel", view), Rule(f"{source}.bias", f"{target}/bias")


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def _bottleneck(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *_norm(f"{source}.norm", f"{target}/norm"),
        *_layer(f"{source}.expand", f"{target}/expand", conv),
        *_layer(f"{source}.excite.reduce", f"{target}/excite/reduce", linear()),
        *_layer(f"{source}.excite.expand", f"{target}/excite/expand", linear()),
        *_layer(f"{source}.depthwise", f"{target}/depthwise", depthwise),
        *_layer(f"{source}.project", f"{target}/project", conv),
    )


def _blocks(source: str, target: str) -> tuple[Rule, ...]:
    """The blocks of all levels of encoder or decoder."""
    mb, inception = "levels.{i}.mb.{j}", "levels.{i}.inception.{j}"
    our_mb, our_inception = "level_{i}/mb_{j}", "level_{i}/inception_{j}"
    return (
        *_norm(f"{source}.{mb}.norm", f"{target}/{our_mb}/norm"),
        *_layer(f"{source}.{mb}.lead.0", f"{target}/{our_mb}/lead", conv),
        *_layer(f"{source}.{mb}.lead.0", f"{target}/{our_mb}/lead_space", conv),
        *_layer(f"{source}.{mb}.lead.1", f"{target}/{our_mb}/lead_time", conv),
        *_bottleneck(f"{source}.{mb}.bottleneck", f"{target}/{our_mb}/bottleneck"),
        *_norm(f"{source}.{inception}.norm", f"{target}/{our_inception}/norm"),
        *_layer(f"{source}.{inception}.branches.{{k}}", f"{target}/{our_inception}/branch_{{k}}", conv),
        *_bottleneck(f"{source}.{inception}.bottlenecks.{{k}}", f"{target}/{our_inception}/bottleneck_{{k}}"),
        *_layer(f"{source}.{inception}.fuse", f"{target}/{our_inception}/fuse", conv),
    )


_ENCODER, _DECODER, _MFI = (
    "params/tokenizer/network/encoder",
    "params/tokenizer/network/decoder",
    "params/tokenizer/network/mfi_head",
)

MBQ_VAE = TensorMap(
    rules=(
        *_layer("encoder.stem", f"{_ENCODER}/stem", conv),
        *_blocks("encoder", _ENCODER),
        *_layer("encoder.down.{i}", f"{_ENCODER}/down_{{i}}", conv),
        *_norm("encoder.norm", f"{_ENCODER}/norm"),
        *_layer("encoder.tail", f"{_ENCODER}/tail", conv),
        *_layer("encoder.project", f"{_ENCODER}/project", conv),
        *_layer("decoder.project", f"{_DECODER}/project", conv),
        *_layer("decoder.head", f"{_DECODER}/head", conv),
        *_blocks("decoder", _DECODER),
        *_layer("decoder.up.{i}.conv", f"{_DECODER}/up_{{i}}/conv", conv),
        *_layer("decoder.up.{i}.conv", f"{_DECODER}/up_{{i}}/conv/conv", conv),
        *_norm("decoder.norm", f"{_DECODER}/norm"),
        *_layer("decoder.output", f"{_DECODER}/output", conv_transpose),
        *_layer("mfi_head.hidden", f"{_MFI}/hidden", linear()),
        *_layer("mfi_head.logits", f"{_MFI}/logits", linear()),
        Rule("mask_fill", "params/tokenizer/mask_fill", same),
        Rule("quantizer.codebook", "params/tokenizer/quantizer/codebook"),
        Rule("quantizer.codebook", "extra/codebook"),
    ),
    # What only training reads: usage counters and averages of the codebook, and discriminators.
    new=("extra/usage", "extra/idle", "extra/count", "extra/sum", "params/discriminator*/*"),
)

"""The 3D-MBQ-VAE: `exporters.pytorch.modeling_mbq_vae` <-> params `tokenizer` and `extra` of its system."""

import numpy as np

from motionaura_jax.core.tensor_map import Rule, TensorMap, conv, conv_transpose, dense, depthwise, layer, norm


def _last(leaf: np.ndarray) -> np.ndarray:
    """View the kernel of the last layer: 1x4x4 transposed with `stem=conv`, and 3x3x3 plain with patches."""
    return conv_transpose(leaf) if leaf.shape[0] == 1 else conv(leaf)


def _bottleneck(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *norm(f"{source}.norm", f"{target}/norm"),
        *layer(f"{source}.expand", f"{target}/expand", conv),
        *dense(f"{source}.excite.reduce", f"{target}/excite/reduce"),
        *dense(f"{source}.excite.expand", f"{target}/excite/expand"),
        *layer(f"{source}.depthwise", f"{target}/depthwise", depthwise),
        *layer(f"{source}.project", f"{target}/project", conv),
    )


def _blocks(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of the blocks in all levels of the encoder or the decoder."""
    mb, inception = "levels.{i}.mb.{j}", "levels.{i}.inception.{j}"
    our_mb, our_inception = "level_{i}/mb_{j}", "level_{i}/inception_{j}"
    return (
        *norm(f"{source}.{mb}.norm", f"{target}/{our_mb}/norm"),
        *layer(f"{source}.{mb}.lead.0", f"{target}/{our_mb}/lead", conv),
        *layer(f"{source}.{mb}.lead.0", f"{target}/{our_mb}/lead_space", conv),
        *layer(f"{source}.{mb}.lead.1", f"{target}/{our_mb}/lead_time", conv),
        *_bottleneck(f"{source}.{mb}.bottleneck", f"{target}/{our_mb}/bottleneck"),
        *norm(f"{source}.{inception}.norm", f"{target}/{our_inception}/norm"),
        *layer(f"{source}.{inception}.branches.{{k}}", f"{target}/{our_inception}/branch_{{k}}", conv),
        *_bottleneck(f"{source}.{inception}.bottlenecks.{{k}}", f"{target}/{our_inception}/bottleneck_{{k}}"),
        *layer(f"{source}.{inception}.fuse", f"{target}/{our_inception}/fuse", conv),
    )


_ENCODER, _DECODER, _MFI = (
    "params/tokenizer/network/encoder",
    "params/tokenizer/network/decoder",
    "params/tokenizer/network/mfi_head",
)

MBQ_VAE = TensorMap(
    rules=(
        *layer("encoder.stem", f"{_ENCODER}/stem", conv),
        *_blocks("encoder", _ENCODER),
        *layer("encoder.down.{i}", f"{_ENCODER}/down_{{i}}", conv),
        *norm("encoder.norm", f"{_ENCODER}/norm"),
        *layer("encoder.tail", f"{_ENCODER}/tail", conv),
        *layer("encoder.project", f"{_ENCODER}/project", conv),
        *layer("decoder.project", f"{_DECODER}/project", conv),
        *layer("decoder.head", f"{_DECODER}/head", conv),
        *_blocks("decoder", _DECODER),
        *layer("decoder.up.{i}.conv", f"{_DECODER}/up_{{i}}/conv", conv),
        *layer("decoder.up.{i}.conv", f"{_DECODER}/up_{{i}}/conv/conv", conv),
        *norm("decoder.norm", f"{_DECODER}/norm"),
        *layer("decoder.output", f"{_DECODER}/output", _last),
        *dense("mfi_head.hidden", f"{_MFI}/hidden"),
        *dense("mfi_head.logits", f"{_MFI}/logits"),
        Rule("mask_fill", "params/tokenizer/mask_fill"),
        Rule("quantizer.codebook", "params/tokenizer/quantizer/codebook"),
        Rule("quantizer.codebook", "extra/codebook"),
    ),
    # Leaves that only training reads: usage counters and averages of the codebook, and discriminators.
    new=("extra/usage", "extra/idle", "extra/count", "extra/sum", "params/discriminator*/*"),
)

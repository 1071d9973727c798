"""Text and vision encoders: one that trains with a denoiser, and published towers."""

from motionaura_jax.parallel import rules

NOT_DECAYED = frozenset({"embedding", "relative_bias"})
"""Leaves without weight decay, besides vectors."""

MATRICES = {
    r"attention(_\d+)?/(query|key|value)/kernel$": (1, 2),
    r"attention(_\d+)?/output/kernel$": (2, 1),
}
"""Input and output axes of kernels that split heads; see `System.matrices`."""

rules.declare(
    (r"relative_bias$", rules.WHOLE),
    # Attention: heads over `tensor`.
    (r"attention(_\d+)?/(query|key|value)/kernel$", ("fsdp", "tensor", None)),
    (r"attention(_\d+)?/output/kernel$", ("tensor", None, "fsdp")),
    (r"blocks/(query|key|value)/kernel$", rules.COLUMNS),
    (r"blocks/output/kernel$", rules.ROWS),
    # Multilayer perceptrons.
    (r"(mlp_\d+|mlp|blocks)/(gate|up)/kernel$", rules.COLUMNS),
    (r"(mlp_\d+|mlp)/out/kernel$", rules.ROWS),
    (r"(mlp|blocks)/down/kernel$", rules.ROWS),
    # By features, as no axis needs to divide a number of words.
    (r"text/embedding$", (None, "fsdp")),
)

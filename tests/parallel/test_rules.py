"""Every parameter has a rule; placements match the table on file; state derived from parameters is placed with them."""

import importlib

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from motionaura_jax.core import config
from motionaura_jax.models import encoders
from motionaura_jax.models.encoders.config import T5Config
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.parallel import rules
from motionaura_jax.systems import registry
from tests.systems import tiny

LORA = {"rank": 8, "targets": ["q", "k", "v", "o"]}
SIZES = {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
WIDE = {"vocab_size": 16, "width": 32, "heads": 2, "blocks": 4, "text_dim": 8, "text_len": 16}


def system(**values):
    cls = registry.system_class(values["system"])
    return cls(config.build(cls.Recipe, values))


def text_to_video(**model):
    values = tiny.text_to_video("absent", model={**WIDE, **model})
    return system(**values, latent_space="any")


def tokenizer(**model):
    return system(system="mbq_vae", data=tiny.SIZE, model={**tiny.TOKENIZER, **model}, loss={"adversarial": 0.1})


def places(built, sizes=SIZES):
    params, extra = jax.eval_shape(built.init, jax.random.key(0))
    return rules.place({"params": params, "extra": extra}, sizes)


@pytest.mark.parametrize(
    "model",
    [
        {"spectral": kind, "residual": residual, "adaln": adaln, "blocks": 1, "lora": LORA}
        for kind, residual, adaln in [
            ("re_fft2", "identity", "single"),
            ("filter", "paper", "lowrank256"),
            ("hartley3d", "identity", "perblock"),
            ("none", "paper", "single"),
        ]
    ],
    ids=lambda model: model["spectral"],
)
def test_every_parameter_of_text_to_video_has_a_rule(model):
    built = text_to_video(**model)
    params, _ = jax.eval_shape(built.init, jax.random.key(0))
    for tree in (params, jax.eval_shape(built.for_inference, params)):
        assert [one.path for one in rules.place(tree, SIZES) if not one.known] == []


@pytest.mark.parametrize(
    "model",
    [
        {"enc_mb": [1, 0], "enc_inc": [0, 1], "dec_mb": [1, 0], "upsample": "subpixel"},
        {"enc_mb": [1, 0], "lead": "factor", "quantizer": "vq_ema"},
        {"quantizer": "fsq", "fsq_levels": [4, 4, 4, 4]},
        {"stem": "haar", "stem_time": 2, "stem_space": 4},
    ],
    ids=["all blocks", "factorized", "fsq", "patches"],
)
def test_every_parameter_of_the_tokenizer_has_a_rule(model):
    assert [one.path for one in places(tokenizer(**model)) if not one.known] == []


def test_layers_next_to_patches_split_their_features_in_storage():
    specs = {one.path: one.spec for one in places(tokenizer(stem="patch", stem_space=4))}
    for layer in ("encoder/stem", "decoder/output"):
        spec = specs[f"params/tokenizer/network/{layer}/kernel"]
        assert spec == PartitionSpec(None, None, None, None, "fsdp")


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("text_to_video", lambda: text_to_video()),
        ("mbq_vae", lambda: tokenizer(enc_mb=[1, 0], enc_inc=[0, 1], channels=[16, 16])),
    ],
)
def test_the_table_of_placements_is_the_one_on_file(name, built, root):
    """If a difference is intended, update the table on file."""
    assert rules.table(places(built()), SIZES) + "\n" == (root / f"tests/parallel/{name}.txt").read_text("utf-8")


def test_a_published_t5_needs_no_rules_of_other_networks(monkeypatch):
    monkeypatch.setattr(rules, "_declared", {})
    importlib.reload(encoders)
    network = T5Encoder(T5Config(num_layers=2, feed_forward_proj="gated-gelu"))
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    specs = {one.path: one.spec for one in rules.place(params, SIZES)}
    assert specs["blocks/mlp/out/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["blocks/mlp/gate/kernel"] == specs["blocks/mlp/up/kernel"] == PartitionSpec(None, "fsdp", "tensor")


def test_stacked_layers_are_never_split_along_the_stack():
    stacked = [one for one in places(text_to_video(), {**SIZES, "fsdp": 2}) if "blocks/" in one.path]
    assert all(one.shape[0] == WIDE["blocks"] and (not one.spec or one.spec[0] is None) for one in stacked)
    assert len(stacked) > 10


def test_an_axis_that_does_not_divide_is_left_out_and_reported():
    found = rules.place({"mlp": {"in": {"kernel": jnp.zeros((3, 6, 10)), "bias": jnp.zeros((3, 10))}}}, SIZES)
    assert [one.spec for one in found] == [PartitionSpec(), PartitionSpec(None, None, "tensor")]
    (line,) = rules.report(found, SIZES)
    assert (
        line.startswith("fsdp=4 does not divide 2 of 2 arrays (100.00% of the parameters)") and "mlp/in/kernel" in line
    )


def test_an_array_without_a_rule_is_copied_and_marked():
    (one,) = rules.place({"color": jnp.zeros(8)}, SIZES)
    assert one.spec == PartitionSpec() and not one.known
    assert "(no rule)" in rules.table([one], SIZES)


def test_optimizer_state_lies_beside_its_parameters():
    params = {"out": {"o": jnp.zeros((3, 256, 512))}, "norm": {"scale": jnp.zeros(8)}}
    leaders = rules.place(params, SIZES)
    assert leaders[0].spec == PartitionSpec("fsdp")
    adam = rules.follow(optax.adamw(1e-3).init(params), leaders)
    assert [(one.path.split("/")[-1], one.spec) for one in adam] == [
        ("count", PartitionSpec()),
        *[("scale", PartitionSpec("fsdp")), ("o", PartitionSpec(None, "tensor", "fsdp"))] * 2,
    ]
    factored = {one.path: one for one in rules.follow(optax.adafactor(1e-3).init(params), leaders)}
    specs = {one.shape: one.spec for one in factored.values() if one.path.endswith("out/o")}
    assert specs == {
        (3, 256): PartitionSpec(None, "tensor"),
        (3, 512): PartitionSpec(None, "fsdp"),
        (1,): PartitionSpec(),
    }


def test_bytes_on_a_device():
    (one,) = rules.place({"out": {"o": jnp.zeros((16, 16), jnp.float32)}}, SIZES)
    assert one.device_bytes(SIZES) == 16 * 16 * 4 // 8

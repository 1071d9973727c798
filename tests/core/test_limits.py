"""Values outside a setting's limits: building the recipe fails with an error that names the key."""

import dataclasses
import math
import re

import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.denoisers.config import preset
from motionaura_jax.systems.mbq_vae import MBQVAERecipe
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe

NAN, INFINITY = math.nan, math.inf
COUNTS = ["train.steps", "train.accumulation", "train.log_every", "train.max_skipped", "checkpoint.every"]
COUNTS += ["checkpoint.keep", "evaluate.every", "evaluate.clips", "data.num_frames", "data.batch_size", "data.scenes"]
SHARES = ["masking.frame_probability", "masking.patch_probability", "masking.patch_ratio", "masking.anneal"]

TOKENIZER = [
    *((key, 0) for key in COUNTS),
    *((key, value) for key in SHARES for value in (-0.1, 1.1, NAN)),
    *(("seed", value) for value in (-1, 2**63)),
    *(("train.ema_decay", value) for value in (-0.1, 1.0, NAN)),
    *(("optimizer.learning_rate", value) for value in (-1e-4, NAN, INFINITY)),
    *(("data.fps", value) for value in (0.0, -8.0, NAN, INFINITY)),
    *(("data.held_out", value) for value in (0.0, 1.0)),
    ("optimizer.warmup_steps", -1),
    ("evaluate.pictures", -1),
    ("model.codebook_size", 0),
    ("model.latent_dim", 0),
    ("model.channels", [8, 0, 8]),
    ("model.inception_width", 0.0),
    ("model.conv_impl", "foo"),
    ("model.depthwise_impl", "foo"),
    ("model.transpose_impl", "foo"),
    ("model.nearest_impl", "foo"),
    ("loss.l1", -1.0),
]
DENOISER = [
    ("text.max_missing", 1.1),
    ("text.encoder.buckets", 3),
    ("diffusion.text_dropout", 1.0),
    ("sample.guidance_scale", 0.5),
    ("sample.levels", 0),
    ("token_cache", -1),
]


def build(cls, key, value):
    values = {"system": "any", "tokenizer": "somewhere"} if cls is TextToVideoRecipe else {"system": "any"}
    for part in reversed(key.split(".")):
        value = {part: value}
    return config.build(cls, values | value)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [*((MBQVAERecipe, *row) for row in TOKENIZER), *((TextToVideoRecipe, *row) for row in DENOISER)],
)
def test_a_value_outside_is_refused_with_its_key(cls, key, value):
    with pytest.raises(UserError, match=rf"^config\.{re.escape(key)}(\[1\])?=.*: (must be|expected one of)"):
        build(cls, key, value)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_a_range_are_inside(value):
    assert build(MBQVAERecipe, "masking.patch_ratio", value).masking.patch_ratio == value
    assert build(MBQVAERecipe, "optimizer.learning_rate", value).optimizer.learning_rate == value


def test_a_choice_among_numbers_is_parsed_from_the_command_line():
    assert build(MBQVAERecipe, "model.t_stride", "2").model.t_stride == 2


def test_values_are_held_to_their_limits_without_a_config_file_too():
    with pytest.raises(UserError, match=r"^MBQVAEConfig\.channels\[0\]=0: must be at least 1"):
        dataclasses.replace(MBQVAEConfig(), channels=(0, 0, 0, 0))
    with pytest.raises(UserError, match=r"^SpectralTransformerConfig\.width=0: must be at least 1"):
        preset("tiny", width=0)
    with pytest.raises(UserError, match=r"conv_impl='laxx' is not one of .*did you mean 'lax'"):
        MBQVAEConfig(conv_impl="laxx")


def test_rendered_scenes_are_too_short_for_longer_buckets():
    bucket = {"num_frames": 16, "height": 32, "width": 32, "batch_size": 1}
    with pytest.raises(UserError, match=r"^config\.data\.buckets: 16 frames, .* --config\.data\.manifest=PATH"):
        build(MBQVAERecipe, "data", {"buckets": [bucket]})
    for more in ({"manifest": "clips"}, {"num_frames": 16}):
        assert build(MBQVAERecipe, "data", {"buckets": [bucket], **more}).data.buckets[0].num_frames == 16

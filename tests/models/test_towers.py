"""Published encoders against the torch modules of transformers, with random weights saved by those modules."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motionaura_jax.weights.towers import open_tower

TOLERANCE = 1e-4

TINY = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY_VISION = {**TINY, "image_size": 30, "patch_size": 8}
TINY_TEXT = {**TINY, "vocab_size": 99, "max_position_embeddings": 16}
TINY_T5 = {"vocab_size": 99, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 4}
BASE_T5 = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}


@pytest.fixture(autouse=True)
def torch():
    return pytest.importorskip("torch")


def randomize(model, torch):
    """Perturb norms and biases, so that a missing part shows, and kernels slightly.

    Kernels keep their scale: with larger ones softmax would pick one position, and rounding would decide which.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 * parameter.std() if parameter.ndim > 1 else 0.05
            parameter.add_(scale * torch.randn(parameter.shape))
    return model.eval()


def largest_difference(ours, theirs):
    assert ours.shape == tuple(theirs.shape)
    return np.abs(np.asarray(ours, np.float32) - theirs.detach().numpy()).max()


def words(torch, length, vocab, end=None):
    ids = np.random.default_rng(3).integers(3, vocab - 1, (3, length))
    if end is not None:
        ids[:, -1], ids[0, 4] = end, end
    return ids, torch.from_numpy(ids)


def compare_t5(folder, torch, **settings):
    from transformers import T5Config, T5EncoderModel

    randomize(T5EncoderModel(T5Config(**settings)), torch).save_pretrained(folder)
    reference = T5EncoderModel.from_pretrained(folder)
    ids, theirs = words(torch, 80, settings["vocab_size"])
    mask = np.ones(ids.shape, bool)
    mask[1, 33:], mask[2, 1:] = False, False
    expected = reference(theirs, attention_mask=torch.from_numpy(mask)).last_hidden_state
    actual = jax.jit(lambda tower, *inputs: tower(*inputs))(open_tower(str(folder), "t5", dtype="float32"), ids, mask)
    return largest_difference(actual[mask], expected[torch.from_numpy(mask)])


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_t5(tmp_path, torch, kind):
    settings = {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40}
    assert compare_t5(tmp_path, torch, feed_forward_proj=kind, **TINY_T5, **settings) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_t5_base(tmp_path, torch, kind):
    assert compare_t5(tmp_path, torch, feed_forward_proj=kind, **BASE_T5) <= TOLERANCE


def test_a_whole_t5_with_its_decoder_serves(tmp_path, torch):
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(**TINY_T5)).save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any(name.startswith("decoder.") for name in names)
    ids, theirs = words(torch, 9, 99)
    expected = T5EncoderModel.from_pretrained(tmp_path)(theirs).last_hidden_state
    actual = open_tower(str(tmp_path), "t5", dtype="float32")(ids, ids > 0)
    assert largest_difference(actual, expected) <= TOLERANCE


def test_the_embedding_may_have_its_other_name(tmp_path, torch):
    from transformers import T5Config, T5EncoderModel

    T5EncoderModel(T5Config(**TINY_T5)).save_pretrained(tmp_path)
    before = open_tower(str(tmp_path), "t5", dtype="float32").params["embedding"]
    tensors = load_file(tmp_path / "model.safetensors")
    for both in (True, False):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] if both else tensors.pop("shared.weight")
        save_file(tensors, tmp_path / "model.safetensors")
        np.testing.assert_array_equal(open_tower(str(tmp_path), "t5", dtype="float32").params["embedding"], before)


def compare_vision(folder, torch, kind, model, reference, size):
    """Compare tokens, pooled and projected features of pictures with the saved `model`."""
    randomize(model, torch).save_pretrained(folder)
    pixels = np.random.default_rng(5).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    expected = reference(torch.from_numpy(np.moveaxis(pixels, -1, 1).copy()))
    actual = jax.jit(lambda tower, x: tower(x))(open_tower(str(folder), kind, dtype="float32"), pixels)
    assert largest_difference(actual.tokens, expected.last_hidden_state) <= TOLERANCE
    return actual, expected


def compare_siglip(folder, torch, vision, text):
    from transformers import SiglipConfig, SiglipModel

    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    actual, expected = compare_vision(folder, torch, "siglip_vision", model, model.vision_model, vision["image_size"])
    pooled = largest_difference(actual.pooled, expected.pooler_output)
    ids, theirs = words(torch, text["max_position_embeddings"], text["vocab_size"])
    expected = model.text_model(theirs)
    actual = open_tower(str(folder), "siglip_text", dtype="float32")(ids)
    of_text = largest_difference(actual.tokens, expected.last_hidden_state)
    return max(pooled, of_text, largest_difference(actual.pooled, expected.pooler_output))


def test_siglip(tmp_path, torch):
    assert compare_siglip(tmp_path, torch, TINY_VISION, TINY_TEXT) <= TOLERANCE


@pytest.mark.slow
def test_siglip_base(tmp_path, torch):
    vision, text = {"image_size": 224, "patch_size": 16}, {"vocab_size": 32000, "max_position_embeddings": 64}
    assert compare_siglip(tmp_path, torch, vision, text) <= TOLERANCE


def test_siglip_towers_alone_with_and_without_prefix(tmp_path, torch):
    from transformers import SiglipTextConfig, SiglipTextModel, SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(SiglipVisionConfig(**TINY_VISION, vision_use_head=False))
    actual, _ = compare_vision(tmp_path, torch, "siglip_vision", model, model, 30)
    assert actual.pooled is None
    model = SiglipVisionModel(SiglipVisionConfig(**TINY_VISION))
    actual, _ = compare_vision(tmp_path, torch, "siglip_vision", model, model, 30)
    prefix_all(tmp_path, "vision_model.")
    pixels = np.random.default_rng(5).uniform(-1, 1, (2, 30, 30, 3)).astype(np.float32)
    again = open_tower(str(tmp_path), "siglip_vision", dtype="float32")(pixels)
    np.testing.assert_allclose(again.pooled, actual.pooled, atol=1e-6)
    model = randomize(SiglipTextModel(SiglipTextConfig(**TINY_TEXT, projection_size=12)), torch)
    model.save_pretrained(tmp_path)
    prefix_all(tmp_path, "text_model.")
    ids, theirs = words(torch, 16, 99)
    pooled = open_tower(str(tmp_path), "siglip_text", dtype="float32")(ids).pooled
    assert largest_difference(pooled, model(theirs).pooler_output) <= TOLERANCE


def prefix_all(folder, prefix):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({prefix + name.removeprefix(prefix): value for name, value in tensors.items()}, path)


def compare_clip(folder, torch, vision, text, projection):
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))
    actual, expected = compare_vision(folder, torch, "clip_vision", model, model.vision_model, vision["image_size"])
    of_pictures = (
        largest_difference(actual.pooled, expected.pooler_output),
        largest_difference(actual.projected, model.visual_projection(expected.pooler_output)),
    )
    ids, theirs = words(torch, text["max_position_embeddings"], text["vocab_size"], text["vocab_size"] - 1)
    expected = model.text_model(theirs)
    actual = open_tower(str(folder), "clip_text", dtype="float32")(ids)
    return max(
        *of_pictures,
        largest_difference(actual.tokens, expected.last_hidden_state),
        largest_difference(actual.pooled, expected.pooler_output),
        largest_difference(actual.projected, model.text_projection(expected.pooler_output)),
    )


@pytest.mark.parametrize("end", [2, 98])
def test_clip(tmp_path, torch, end):
    marks = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": end}
    assert compare_clip(tmp_path, torch, TINY_VISION, {**TINY_TEXT, **marks}, 20) <= TOLERANCE


@pytest.mark.slow
def test_clip_base(tmp_path, torch):
    text = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    assert compare_clip(tmp_path, torch, {"image_size": 224, "patch_size": 32}, text, 512) <= TOLERANCE


def test_clip_towers_alone(tmp_path, torch):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**TINY_VISION, projection_dim=20))
    randomize(model, torch).save_pretrained(tmp_path)
    pixels = np.random.default_rng(5).uniform(-1, 1, (2, 30, 30, 3)).astype(np.float32)
    expected = model(torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())).image_embeds
    actual = open_tower(str(tmp_path), "clip_vision", dtype="float32")(pixels).projected
    assert largest_difference(actual, expected) <= TOLERANCE
    marks = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 98}
    model = randomize(CLIPTextModel(CLIPTextConfig(**TINY_TEXT, **marks)), torch)
    model.save_pretrained(tmp_path)
    ids, theirs = words(torch, 16, 99, 98)
    actual = open_tower(str(tmp_path), "clip_text", dtype="float32")(ids)
    assert actual.projected is None
    assert largest_difference(actual.pooled, model(theirs).pooler_output) <= TOLERANCE


def test_half_precision_is_near(tmp_path, torch):
    from transformers import T5Config, T5EncoderModel

    randomize(T5EncoderModel(T5Config(**TINY_T5)), torch).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) > 10
    ids, _ = words(torch, 20, 99)
    full, half = (np.asarray(open_tower(str(tmp_path), "t5", dtype=d)(ids, ids > 0)) for d in ("float32", "bfloat16"))
    assert half.dtype.name == "bfloat16"
    assert np.abs(half.astype(np.float32) - full).max() < 0.05 * np.abs(full).max()

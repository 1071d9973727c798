"""An adapter on an exported pipeline: equality with the adapted JAX network, and refusals."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from motionaura_jax import export
from motionaura_jax.core.trees import merge, partition
from motionaura_jax.exporters import adapter
from motionaura_jax.exporters import base as base_exporter
from motionaura_jax.exporters.pytorch import compare
from motionaura_jax.models.layers.config import LoraConfig
from motionaura_jax.systems.loading import load
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from tests.exporters.pytorch import parity
from tests.systems import tiny

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return an exported model, an adapter, and the JAX model with that adapter."""
    folder = tmp_path_factory.mktemp("lora")
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    tiny.save_untrained(folder / "base", noise=0.3, **tiny.text_to_video(tokenizer))
    flags = [f"--checkpoint={folder / 'base'}", f"--output={folder / 'exported'}", "--format=pytorch", "--no_check"]
    assert export.main(flags) == 0
    base = load(folder / "base")
    model = dataclasses.replace(base.recipe.model, lora=LoraConfig(rank=5, targets=("q", "k", "v", "o")))
    recipe = dataclasses.replace(base.recipe, model=model)
    shapes = jax.eval_shape(TextToVideoSystem(recipe).init, jax.random.key(0))[0]
    rng = np.random.default_rng(0)
    fresh, _ = partition(shapes, recipe.added)
    drawn = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32), fresh)
    adapted = dataclasses.replace(base, recipe=recipe, params=merge(base.params, drawn))
    (folder / "adapter").mkdir()
    opened = base_exporter.Opened(system=TextToVideoSystem(recipe), model=adapted)
    adapter.write(folder / "adapter", opened, base_exporter.Options())
    return folder, adapted


@pytest.fixture(scope="module")
def pipe(folders):
    from motionaura_jax.exporters.pytorch.pipeline_motionaura import MotionAuraPipeline

    return lambda **options: MotionAuraPipeline.from_pretrained(folders[0] / "exported", **options)


def test_a_pipeline_with_an_adapter_is_the_adapted_model(folders, pipe):
    from motionaura_jax.exporters.pytorch.run_exported import run_denoiser

    folder, adapted = folders
    given, wanted = compare._denoiser_case(adapted)
    given = {name: torch.from_numpy(np.array(array)) for name, array in given.items()}
    with torch.inference_mode():
        plain, folded = pipe(fold=False), pipe()
        before = run_denoiser(pipe(fold=False), given)["logits"]
        for one in (plain, folded):
            one.load_lora_weights(folder / "adapter")
        assert (plain.transformer.is_folded, folded.transformer.is_folded) == (False, True)
        found = run_denoiser(plain, given)
        text, mask = folded.encode_prompt(bytes(given["texts"].tolist()).decode().split("\n"))
        merged = folded.transformer(given["tokens"], given["level"], given["fps"], text, mask)
    assert np.abs(before.numpy() - wanted["logits"]).max() > 0.1
    for logits in (found["logits"], found["logits_folded"], merged):
        parity.assert_close(logits.numpy(), wanted["logits"])


def test_an_adapter_of_another_model_is_refused(folders, pipe, tmp_path):
    opened, there = pipe(), shutil.copytree(folders[0] / "adapter", tmp_path / "there")
    settings = json.loads((there / adapter.CONFIG).read_text())

    def told(**changes):
        (there / adapter.CONFIG).write_text(json.dumps({**settings, **changes}))
        return there

    with pytest.raises(ValueError, match="trained on the weights 0000, but these are"):
        opened.load_lora_weights(told(base_model_hash="0000"))
    with pytest.raises(ValueError, match="lora_alpha must equal r"):
        opened.load_lora_weights(told(lora_alpha=1))
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_A"):
        opened.load_lora_weights(told(r=4, lora_alpha=4))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*lora_A"):
        opened.load_lora_weights(told(target_modules=["to_q", "mlp"]))
    for more in (
        {"use_rslora": True},
        {"use_dora": True},
        {"alpha_pattern": {"to_q": 1}},
        {"rank_pattern": {"to_q": 1}},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(more))} changes what the adapter computes"):
            opened.load_lora_weights(told(**more))
    for broken in ({"r": "5"}, {"target_modules": None}):
        with pytest.raises(ValueError, match="or has it with another type"):
            opened.load_lora_weights(told(**broken))
    with pytest.raises(FileNotFoundError):
        opened.load_lora_weights(tmp_path)


def test_an_adapter_replaces_no_weight_of_the_model(folders, pipe, tmp_path):
    from safetensors.numpy import load_file, save_file

    there = shutil.copytree(folders[0] / "adapter", tmp_path / "there")
    tensors = load_file(there / adapter.WEIGHTS)
    base = load_file(folders[0] / "exported" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name in ("head.bias", "base_model.model.head.bias"):
        save_file({**tensors, name: np.zeros_like(base["head.bias"])}, there / adapter.WEIGHTS)
        with pytest.raises(ValueError, match=r"head.bias is no tensor of an adapter"):
            pipe().load_lora_weights(there)

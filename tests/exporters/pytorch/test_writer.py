"""Exported folders without torch: their content, their use as checkpoints, and complete, atomic writes."""

import ast
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motionaura_jax import assets, export, reconstruct, sample
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.data import mp4
from motionaura_jax.data.media import write_json, write_video
from motionaura_jax.exporters.pytorch import compare, settings
from motionaura_jax.models.autoencoders.config import preset as tokenizer_preset
from motionaura_jax.models.denoisers.config import preset as denoiser_preset
from motionaura_jax.models.encoders.config import TextEncoderConfig
from motionaura_jax.systems import registry
from motionaura_jax.systems.loading import load
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.weights import exported
from motionaura_jax.weights.load import load_start
from tests.systems import tiny

MODULES = sorted(Path(settings.__file__).parent.glob("modeling_*.py"))
COPIED = [
    *MODULES,
    *(MODULES[0].with_name(f"{name}.py") for name in ("pipeline_motionaura", "scheduling_absorbing")),
    Path(mp4.__file__),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    tiny.save_untrained(folder / "model", noise=0.1, **tiny.text_to_video(tokenizer))
    return folder


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    return write(runs / "model", tmp_path_factory.mktemp("exports") / "model")


def write(checkpoint, output, *flags):
    assert export.main([*command(checkpoint, output), "--no_check", *flags]) == 0
    return output


def command(checkpoint, output):
    return [f"--checkpoint={checkpoint}", f"--output={output}", "--format=pytorch"]


def error_of(run, capsys):
    capsys.readouterr()
    assert run() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def assert_same_bits(one, other):
    pairs = zip(*(jax.tree.leaves((loaded.params, loaded.extra)) for loaded in (one, other)), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_folder_is_what_a_diffusers_user_knows(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {f"{part}/config.json" for part in ("text_encoder", "transformer", "vae")} <= names
    assert {f"{part}/{exported.WEIGHTS}" for part in ("text_encoder", "transformer", "vae")} <= names
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "README.md"} <= names
    assert {path.name for path in COPIED} <= names
    index = json.loads((folder / "model_index.json").read_text())
    for part in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler"):
        module, name = index[part]
        assert f"class {name}" in (folder / f"{module}.py").read_text()
    assert "Not compared" in (folder / "README.md").read_text()


# Packages for hub ids, or for a published text encoder.
OPTIONAL = {"modeling_utils": "huggingface_hub", "modeling_published_text": "transformers"}


@pytest.mark.parametrize("path", COPIED, ids=lambda path: path.stem)
def test_copied_modules_need_torch_and_safetensors_only(path):
    known = {"torch", "safetensors", OPTIONAL.get(path.stem), *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("motionaura_jax"):
            module = node.module.removeprefix("motionaura_jax.")
            assert module.removeprefix("exporters.pytorch.").removeprefix("data.") in {copy.stem for copy in COPIED}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.split(".")[0] for name in names} <= known | ({"av", "numpy"} if path.stem == "mp4" else set())


@pytest.mark.parametrize(
    ("module", "name", "values"),
    [
        ("modeling_mbq_vae", "MBQVAEConfig", settings.tokenizer_settings(tokenizer_preset("tiny"))),
        (
            "modeling_spectral_transformer",
            "SpectralTransformerConfig",
            settings.denoiser_settings(denoiser_preset("tiny")),
        ),
        ("modeling_text_encoder", "TextEncoderConfig", settings.text_settings(TextEncoderConfig(), 5, 4)),
    ],
)
def test_settings_are_those_that_the_modules_declare(module, name, values):
    tree = ast.parse((MODULES[0].with_name(f"{module}.py")).read_text())
    (declared,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    assert {node.target.id for node in declared.body if isinstance(node, ast.AnnAssign)} == values.keys()


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"quantizer": "vq_ema", "enc_mb": [0, 1], "dec_inc": [1, 0], "causal": True},
        {"quantizer": "fsq", "fsq_levels": [8, 5, 5, 5], "dec_mb": [1, 0], "lead": "factor", "upsample": "subpixel"},
        {"quantizer": "none", "enc_inc": [1, 1]},
        {"stem": "haar", "stem_time": 2, "stem_space": 4},
    ],
)
def test_a_tokenizer_comes_back_bit_by_bit(model, tmp_path):
    loss = {"adversarial": 0.1} if "causal" in model else {}
    values = {"system": "mbq_vae", "model": {**tiny.TOKENIZER, **model}, "data": tiny.SIZE, "loss": loss}
    assert_comes_back(tmp_path, values, shard_bytes=2000)
    assert len(list(tmp_path.glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1


def assert_comes_back(folder, values, shard_bytes):
    """Write random weights of a recipe and assert that every bit reads back."""
    recipe = config.build(registry.system_class(values["system"]).Recipe, values)
    shapes = jax.eval_shape(registry.system_class(recipe.system)(recipe).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params, extra = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    meta = {"system": recipe.system, "recipe": config.to_dict(recipe), "step": 0, "weights": "raw", "versions": {}}
    write_json(folder / exported.META, meta)
    components = registry.system_class(recipe.system).components
    for component in components:
        (folder / component.folder).mkdir(exist_ok=True)
    exported.write_weights(folder, components, params, extra, dtype="float32", shard_bytes=shard_bytes)
    again = exported.read_weights(folder, components, *shapes)
    for a, b in zip(jax.tree.leaves((params, extra)), jax.tree.leaves(again), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"spectral": "filter", "residual": "paper", "adaln": "lowrank256"},
        {"spectral": "none", "adaln": "perblock", "blocks": 2, "time_cond": False, "abs_pos": False},
        {"spectral": "hartley3d", "cross_spectral": False, "rope": "sinusoidal"},
    ],
)
def test_a_text_to_video_model_comes_back_bit_by_bit(model, tmp_path):
    values = tiny.text_to_video("nowhere", model=model)
    assert_comes_back(tmp_path, {**values, "latent_space": "0" * 16}, shard_bytes=4000)


def test_an_exported_folder_is_a_checkpoint_from_which_all_comes_back(runs, folder, tmp_path):
    assert_same_bits(load(runs / "model"), load(folder, "text_to_video"))
    assert_same_bits(load(runs / "tokenizer"), load(folder / "vae", "mbq_vae"))
    assert export.main([f"--checkpoint={folder}", f"--output={tmp_path / 'back'}"]) == 0
    assert_same_bits(load(runs / "model"), load(tmp_path / "back"))


def test_shards_are_within_the_limit_and_hold_every_tensor_once(runs, tmp_path):
    there = write(runs / "model", tmp_path / "there", "--max_shard_bytes=3000") / "transformer"
    index = json.loads((there / f"{exported.WEIGHTS}.index.json").read_text())
    files = {file: load_file(there / file) for file in set(index["weight_map"].values())}
    assert {path.name for path in there.glob("*.safetensors")} == files.keys()
    assert all(len(held) == 1 or sum(a.nbytes for a in held.values()) <= 3000 for held in files.values())
    names = [(name, file) for file, held in files.items() for name in held]
    assert dict(names) == index["weight_map"] and len(names) == len(index["weight_map"])
    total = sum(array.nbytes for held in files.values() for array in held.values())
    assert index["metadata"]["total_size"] == total


def test_an_exported_folder_samples_and_reconstructs(runs, folder, tmp_path):
    videos = []
    for number, checkpoint in enumerate([runs / "model", shutil.copytree(folder, tmp_path / "moved")]):
        output = tmp_path / f"{number}.npz"
        assert sample.main([f"--checkpoint={checkpoint}", "--prompt=a red circle", f"--output={output}"]) == 0
        videos.append(np.load(output)["video"])
    np.testing.assert_array_equal(*videos)
    write_video(tmp_path / "in.gif", videos[0], 8.0)
    flags = [f"--input={tmp_path / 'in.gif'}", f"--output={tmp_path / 'out.gif'}"]
    assert reconstruct.main([f"--checkpoint={folder / 'vae'}", *flags]) == 0


def test_a_run_starts_from_an_exported_folder(runs, folder):
    values = {**tiny.text_to_video(runs / "tokenizer"), "tokenizer": "", "init_from": str(folder)}
    values["text"] = {**values["text"], "vocabulary": []}
    system = TextToVideoSystem(config.build(TextToVideoRecipe, values))
    assert system.recipe.tokenizer == str(folder / "vae")
    started, wanted = load_start(system), load(runs / "model")
    for a, b in zip(jax.tree.leaves(started), jax.tree.leaves((wanted.params, wanted.extra)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_halves_come_back_as_the_halves_that_were_written(runs, tmp_path):
    there = write(runs / "tokenizer", tmp_path / "there", "--dtype=bfloat16")
    back = load(there, "mbq_vae")
    for a, b in zip(*(jax.tree.leaves(one.params) for one in (load(runs / "tokenizer"), back)), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype("bfloat16"), np.asarray(b).astype("bfloat16"))
        assert b.dtype == np.float32


def rewritten(folder, change):
    tensors = load_file(folder / exported.WEIGHTS)
    save_file(change(tensors), folder / exported.WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: rewritten(f / "transformer", lambda t: dict(list(t.items())[1:])), "missing"),
        (lambda f: rewritten(f / "transformer", lambda t: {**t, "more": np.zeros(1, "f4")}), "not used more"),
        (lambda f: rewritten(f / "text_encoder", lambda t: {k: v[:1].copy() for k, v in t.items()}), "shape"),
        (lambda f: rewritten(f / "transformer", lambda t: {k: v.astype(int) for k, v in t.items()}), "dtype"),
        (lambda f: (f / "transformer" / exported.WEIGHTS).write_bytes(b"12345678"), "not a complete safetensors file"),
        (lambda f: (f / "transformer" / exported.WEIGHTS).unlink(), "transformer"),
        (lambda f: (f / "training.json").write_text("{"), "training.json"),
    ],
)
def test_a_damaged_folder_is_one_line(damage, said, folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "there")
    damage(there)
    with pytest.raises(UserError, match=said) as error:
        load(there, "text_to_video")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [lambda t: {}, lambda t: {**t, "params/x": np.zeros(2, "f4")}])
def test_training_state_that_does_not_fit_is_one_line(change, folder, tmp_path):
    there = shutil.copytree(folder / "vae", tmp_path / "there")
    save_file(change(load_file(there / exported.REST)), there / exported.REST)
    with pytest.raises(UserError, match="does not fit"):
        load(there, "mbq_vae")
    (there / exported.REST).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load(there, "mbq_vae")


def test_without_torch_nothing_is_written_unless_told_so(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "can_compare", lambda: False)
    line = error_of(lambda: export.main(command(runs / "model", tmp_path / "there")), capsys)
    assert "torch is not installed" in line and "--no_check" in line
    assert list(tmp_path.iterdir()) == []


def test_outputs_of_torch_that_differ_leave_no_folder(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "can_compare", lambda: True)
    names = ("features", "decoded", "codes")
    monkeypatch.setattr(compare, "_run", lambda folder, given: dict.fromkeys(names, np.zeros(1)))
    line = error_of(lambda: export.main(command(runs / "tokenizer", tmp_path / "there")), capsys)
    assert "'features' deviates" in line and "nothing was written" in line
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_only_what_an_export_wrote(runs, folder, tmp_path, capsys):
    there = shutil.copytree(folder, tmp_path / "there")
    again = [*command(runs / "model", there), "--no_check"]
    assert "add --overwrite" in error_of(lambda: export.main(again), capsys)
    assert export.main([*again, "--overwrite"]) == 0
    other = [*command(runs / "model", runs / "tokenizer"), "--no_check", "--overwrite"]
    assert "not a release folder" in error_of(lambda: export.main(other), capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--no_check"], "--no_check"),
        (["--max_shard_bytes=7"], "--max_shard_bytes"),
        (["--format=stablehlo", "--dtype=float16"], "--dtype"),
        (["--format=pickle"], "--format"),
    ],
)
def test_flags_of_another_format_are_refused(flags, said, runs, tmp_path, capsys):
    try:
        status = export.main([f"--checkpoint={runs / 'model'}", f"--output={tmp_path / 'there'}", *flags])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and said in capsys.readouterr().err and not (tmp_path / "there").exists()


@pytest.mark.slow
def test_the_committed_model_is_exported(tmp_path):
    there = write(assets.SCENES, tmp_path / "there")
    assert_same_bits(load(assets.SCENES), load(there, "text_to_video"))
    assert "scenes_hash" in (there / "README.md").read_text()

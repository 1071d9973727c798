"""Adapters from training to video: trained and frozen weights, portable files, refusals."""

import ast
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motionaura_jax import export, sample
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.trees import leaf_types, partition
from motionaura_jax.exporters import adapter as adapters
from motionaura_jax.scenes import dataset
from motionaura_jax.systems import loading
from motionaura_jax.systems.loading import load
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.training import loop, optimizer, state
from motionaura_jax.weights import steps
from motionaura_jax.weights.checksum import digest
from motionaura_jax.weights.load import load_start
from tests.systems import tiny

LORA = {"rank": 4, "targets": ["q", "k", "o"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a model and the run that adapts it."""
    folder = tmp_path_factory.mktemp("runs")
    options = dataset.PRESETS["easy"]
    size = {"num_frames": 4, "height": 16, "width": 16, "fps": 8.0}
    dataset.write_scenes(folder / "scenes", count=6, split="train", options=options, **size)
    tiny.save_tokenizer(folder / "tokenizer")
    tiny.save_untrained(folder / "base", noise=0.5, **tiny.text_to_video(folder / "tokenizer"))
    fit(values(folder), folder / "adapted")
    return folder


def values(runs, lora=LORA, **sections):
    """Return the values of a run with three steps on adapters."""
    made = tiny.text_to_video(
        "",
        model={"lora": lora},
        data={"manifest": str(runs / "scenes"), "batch_size": 2, "held_out": 0.4},
        train={"steps": 3, "log_every": 1, "ema_decay": 0.9},
    )
    made["text"] = {**made["text"], "vocabulary": []}
    quiet = {"evaluate": {"clips": 1, "pictures": 0}, "optimizer": {"learning_rate": 0.1, "weight_decay": 0.1}}
    return {**made, "init_from": str(runs / "base"), **quiet, **sections}


def system(values):
    return loading.open_system(config.build(TextToVideoRecipe, values), "nowhere")


def fit(values, workdir, **options):
    return loop.fit(loading.open_system(config.build(TextToVideoRecipe, values), workdir), workdir, **options)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_only_adapters_train_and_all_else_keeps_its_bits(runs):
    base, adapted = load(runs / "base"), load(runs / "adapted")
    folder, meta = steps.read_meta(runs / "adapted")
    assert meta["step"] == 3 and meta["weights"] == "averaged"
    raw = steps.read_item(folder, "params", adapted.params)
    start, _ = load_start(system(values(runs)))
    for tree in (raw, adapted.params):
        adapters, frozen = partition(tree, adapted.recipe.added)
        assert_same_bits(frozen, base.params)
        fresh, _ = partition(start, adapted.recipe.added)
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), fresh, adapters)
        assert min(jax.tree.leaves(moved)) > 0


def test_the_optimizer_holds_adapters_alone(runs):
    built = system(values(runs))
    for name in ("adam", "adafactor"):
        settings = config.build(TextToVideoRecipe, values(runs, optimizer={"name": name})).optimizer
        abstract = jax.eval_shape(lambda s=settings: state.create(built, optimizer.build(s, 3), 0))
        held = [name for name, kind in leaf_types(abstract.opt_state).items() if "[]" not in kind]
        assert held and all("lora_" in name for name in held)


def test_a_run_starts_at_adapters_that_are_there_and_resumes(runs, tmp_path):
    again = system(values(runs, init_from=str(runs / "adapted")))
    assert_same_bits(load_start(again)[0], load(runs / "adapted").params)
    shutil.copytree(runs / "adapted", tmp_path / "run")
    more = fit({**values(runs), "train": {**values(runs)["train"], "steps": 4}}, tmp_path / "run", override=True)
    assert more["step"] == 4
    assert_same_bits(partition(load(tmp_path / "run").params, "lora_")[1], load(runs / "base").params)
    linear = {**values(runs, lora={**LORA, "activation": "none"})}
    with pytest.raises(UserError, match=r"config.model.lora.activation=none: .*run was trained with gelu"):
        fit(linear, tmp_path / "run", override=True)


def test_adapters_to_nothing_are_refused(runs, tmp_path):
    alone = {**values(runs, init_from=""), "tokenizer": str(runs / "tokenizer")}
    with pytest.raises(UserError, match=r"config.model.lora.rank=4: adapters need a trained model; .*init_from"):
        fit(alone, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def adapter(runs):
    """Export the adapters of the run."""
    command = [f"--checkpoint={runs / 'adapted'}", f"--output={runs / 'adapter'}", "--format=adapter"]
    assert export.main(command) == 0
    return runs / "adapter"


def test_an_adapter_has_the_form_of_peft(runs, adapter):
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"], settings["bias"]) == ("LORA", 4, 4, "none")
    assert settings["target_modules"] == ["to_q", "to_k", "to_out", "mlp"] and settings["activation"] == "gelu"
    assert settings["base_model_name_or_path"] == "base" and str(runs) not in json.dumps(settings)
    assert settings["base_model_hash"] == digest(load(runs / "base").params)
    tensors = load_file(adapter / "adapter_model.safetensors")
    places = ["self_attention.input.to_q", "self_attention.input.to_k", "self_attention.output.to_out", "mlp"]
    places += ["cross_attention.input.to_q", "cross_attention.output.to_out", "context.key.to_k"]
    names = {f"base_model.model.blocks.0.{place}.lora_{side}.weight" for place in places for side in "AB"}
    assert tensors.keys() == names
    into = load(runs / "adapted").params["denoiser"]["trunk"]["blocks"]["self_attention"]["into"]
    found = tensors["base_model.model.blocks.0.self_attention.input.to_q.lora_A.weight"]
    assert found.shape == (4, 16)  # (r, in), as torch has it
    np.testing.assert_array_equal(found, into["q_lora_down"][0].T)


def test_base_and_adapter_are_the_adapted_model_to_sample_from(runs, adapter, tmp_path):
    adapted = load(runs / "adapted")
    assert_same_bits(adapters.applied(load(runs / "base"), adapter).params, adapted.params)
    flags = [f"--checkpoint={runs / 'base'}", f"--lora={adapter}", "--prompt=a red circle"]
    assert sample.main([*flags, f"--output={tmp_path / 'out.npz'}", "--num_inference_steps=2"]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["lora"] == str(adapter) and record["checkpoint_hash"] == digest(adapted.params)


def rewritten(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")


def told(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda f: told(f, base_model_hash="0" * 16),
            r"trained on the weights 0{16} \(base\), but those of .* are \w{16}",
        ),
        (lambda f: rewritten(f, lambda t: dict(list(t.items())[1:])), "missing base_model|missing blocks"),
        (lambda f: rewritten(f, lambda t: {**t, "more": np.zeros(1, "f4")}), "not used more"),
        (lambda f: rewritten(f, lambda t: {k: v[:1].copy() for k, v in t.items()}), "has the shape"),
        (lambda f: told(f, lora_alpha=8), "r=4 with lora_alpha=8 is not supported"),
        (lambda f: told(f, target_modules=["to_q", "conv"]), "module 'conv' is not supported"),
        (lambda f: told(f, activation="relu"), "activation=relu: expected one of gelu, none"),
        (
            lambda f: told(f, use_rslora=True),
            "use_rslora='True' changes what the adapter computes and is not supported",
        ),
        (lambda f: told(f, use_dora=True), "use_dora='True' .*not supported"),
        (lambda f: told(f, alpha_pattern={"to_q": 8}), "alpha_pattern=.* not supported"),
        (lambda f: told(f, rank_pattern={"to_q": 8}), "rank_pattern=.* not supported"),
        (lambda f: told(f, bias="all"), "bias='all' .*not supported"),
        (lambda f: rewritten(f, lambda t: {k: np.full_like(v, np.nan) for k, v in t.items()}), "are not numbers"),
        (lambda f: told(f, r="4"), "'r' is missing or of the wrong type"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json: is damaged"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no adapter"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_one_line(damage, said, runs, adapter, tmp_path):
    there = shutil.copytree(adapter, tmp_path / "there")
    damage(there)
    with pytest.raises(UserError, match=said) as error:
        adapters.applied(load(runs / "base"), there)
    assert "\n" not in str(error.value)


def test_adapters_on_adapters_and_models_without_are_refused(runs, adapter, tmp_path, capsys):
    with pytest.raises(UserError, match="has adapters already"):
        adapters.applied(load(runs / "adapted"), adapter)
    out = f"--output={tmp_path / 'there'}"
    for checkpoint in ("base", "tokenizer"):
        assert export.main([f"--checkpoint={runs / checkpoint}", out, "--format=adapter"]) == 2
        assert "has no adapters" in capsys.readouterr().err
    assert export.main([f"--checkpoint={runs / 'adapted'}", out, "--format=adapter", "--dtype=float16"]) == 2
    assert "--dtype: not read by --format=adapter" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--format=pytorch", "--no_check"]], ids=["release", "pytorch"])
def test_an_adapted_model_is_exported_with_its_adapters(flags, runs, tmp_path):
    there = tmp_path / "there"
    assert export.main([f"--checkpoint={runs / 'adapted'}", f"--output={there}", *flags]) == 0
    assert_same_bits(load(there).params, load(runs / "adapted").params)


def test_both_readers_of_adapters_follow_the_same_rules(root):
    """The PyTorch module is a copy, because exported folders import nothing of ours."""
    copy = ast.parse((root / "motionaura_jax/exporters/pytorch/modeling_lora.py").read_text())
    values = {ast.unparse(node.targets[0]): node.value for node in copy.body if isinstance(node, ast.Assign)}
    ignored = values["_IRRELEVANT"].args[0]
    assert set(ast.literal_eval(ignored)) == adapters._IRRELEVANT
    assert ast.literal_eval(values["_ASSUMED"]) == adapters._ASSUMED

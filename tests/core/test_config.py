"""Configs: composition, overrides, strict conversion."""

import dataclasses
import json
import shutil
from typing import Literal

import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.systems import registry
from motionaura_jax.systems.mbq_vae import MBQVAERecipe
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    deep: Named = dataclasses.field(default_factory=lambda: Named(name="n"))
    named: tuple[Named, ...] = ()
    flag: bool = False
    inner: Inner = dataclasses.field(default_factory=Inner)
    many: tuple[Inner, ...] = ()


def test_presets_compose_left_to_right():
    presets = {"small": {"inner.rate": 1.0, "name": "s"}, "fast": {"inner.rate": 2.0}}
    assert config.compose({"name": "x"}, presets, "small,fast").to_dict() == {"name": "s", "inner": {"rate": 2.0}}


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="'smal'; did you mean 'small'"):
        config.compose({}, {"small": {}}, "smal")


def test_strings_from_the_command_line_become_the_declared_types():
    values = {"name": "n", "flag": "true", "inner": {"rate": "1e-3", "sizes": "3,4", "limit": "7", "kind": "b"}}
    built = config.build(Outer, values)
    assert built == Outer(name="n", flag=True, inner=Inner(rate=1e-3, sizes=(3, 4), kind="b", limit=7))


def test_plain_values_survive_a_round_trip_through_json():
    built = Outer(name="n", many=(Inner(rate=2.0), Inner(limit=3)))
    assert config.build(Outer, json.loads(json.dumps(config.to_dict(built)))) == built


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "n", "inner": {"rat": 1}}, r"config\.inner\.rat: no such key; did you mean 'rate'"),
        ({}, r"config\.name: this key has no default; set --config\.name=VALUE"),
        ({"name": "n", "deep": {}}, r"config\.deep\.name: .* default; set --config\.deep\.name=VALUE"),
        ({"name": "n", "named": [{}]}, r"config\.named\[0\]\.name: .* default; add it to config\.named\[0\]"),
        ({"name": "n", "inner": {"rate": "fast"}}, r"config\.inner\.rate=fast: expected float"),
        ({"name": "n", "flag": "maybe"}, r"config\.flag=maybe: expected bool"),
        ({"name": "n", "inner": {"kind": "c"}}, r"config\.inner\.kind=c: expected one of a, b"),
        ({"name": "n", "inner": 3}, r"config\.inner=3: this is a group of keys"),
        ({"name": "n", "inner": {"sizes": "1,x"}}, r"config\.inner\.sizes\[1\]=x: expected int"),
        ({"name": "n", "inner": {"limit": 2.5}}, r"config\.inner\.limit=2\.5: expected int"),
        ({"name": 3}, r"config\.name=3: expected str"),
        ({"name": "n", "inner": {"limit": float("inf")}}, r"config\.inner\.limit=inf: expected int"),
        ({"name": "n", "inner": {"rate": 10**400}}, r"config\.inner\.rate=10+...: expected float"),
    ],
)
def test_wrong_values_are_one_line_with_the_key(values, message):
    with pytest.raises(UserError, match=message):
        config.build(Outer, values)


def test_a_file_with_a_preset_and_overrides(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from motionaura_jax.core.config import compose\n"
        "def get_config(variant='one'):\n"
        "    return compose({'name': 'n'}, {'one': {'inner.rate': 1.0}, 'two': {'inner.rate': 2.0}}, variant)\n"
    )
    assert config.read(str(path)) == {"name": "n", "inner": {"rate": 1.0}}
    read = config.read(f"{path}:two", ["--config.inner.limit=4", "--config.flag=true"])
    assert config.build(Outer, read) == Outer(name="n", flag=True, inner=Inner(rate=2.0, limit=4))
    with pytest.raises(UserError, match=r"mine\.py: unknown preset 'tow'; did you mean 'two'"):
        config.read(f"{path}:tow")


@pytest.mark.parametrize("installed", [False, True], ids=["checkout", "wheel"])
def test_a_name_is_a_config_of_the_package(tmp_path, monkeypatch, root, installed):
    """In a checkout `configs/` lies next to the package, in a wheel inside it; names work in both, from any folder."""
    if installed:
        package = tmp_path / "site" / "motionaura_jax"
        shutil.copytree(root / "configs", package / "configs")
        monkeypatch.setattr(config, "__file__", str(package / "core" / "config.py"))
    (tmp_path / "tokenizer").write_text("a file without suffix is no config")
    monkeypatch.chdir(tmp_path)
    short = config.read("text_to_video:tiny,hartley", ["--config.seed=3"])
    assert short == config.read("configs/text_to_video.py:tiny,hartley", ["--config.seed=3"])
    assert config.read("tokenizer")["system"] == "mbq_vae"
    with pytest.raises(UserError, match=r"^text_to_vidio: no config has this name; did you mean 'text_to_video'\?$"):
        config.read("text_to_vidio:tiny")
    with pytest.raises(UserError, match=r"^mavin: no config has this name; known: text_to_video, tokenizer$"):
        config.read("mavin")
    with pytest.raises(UserError, match="unknown preset 'tinny'; did you mean 'tiny'"):
        config.read("tokenizer:tinny")


def test_files_that_are_no_config_say_so(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        config.read("configs/absent.py")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    with pytest.raises(UserError, match=r"broken\.py: this config file failed: SyntaxError"):
        config.read(str(broken))
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"a config is a \.py file"):
        config.read(str(tmp_path / "config.yaml"))


@pytest.mark.parametrize("text", ["[1]", "3", "1e999", "null", '"tiny"'])
def test_a_json_file_that_is_no_object_says_so(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json: is damaged \(holds a JSON \w+, an object was expected\)"):
        config.read(str(path))


@pytest.mark.parametrize("system", ["3", "[1]", '"mbq_va"'])
def test_a_system_that_is_none_is_one_line(tmp_path, system):
    path = tmp_path / "config.json"
    path.write_text(f'{{"system": {system}}}')
    with pytest.raises(UserError, match=r"config\.system=.*: no such system"):
        registry.system_class(config.read(str(path))["system"])


def test_a_config_file_without_a_config_says_so(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {'name': 'n'}\n")
    with pytest.raises(UserError, match=r"mine\.py: this config file failed: AttributeError"):
        config.read(str(path))


def test_an_override_without_a_value_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"--config\.a\.b: write it as --config\.KEY=VALUE"):
        config.read(str(path), ["--config.a.b"])


def test_presets_after_a_saved_config_are_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"config\.json:lora: a saved config takes no presets"):
        config.read(f"{path}:lora")


def test_differences_name_each_dotted_key():
    assert config.differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == [
        "b.c: 2 -> 3",
        "d: None -> 4",
    ]


def test_a_colon_may_belong_to_the_name_of_a_file(tmp_path, monkeypatch):
    folder = tmp_path / "exp:1"
    folder.mkdir()
    (folder / "config.json").write_text('{"name": "n"}')
    code = (
        "import ml_collections\ndef get_config(variant=''):\n    return ml_collections.ConfigDict({'name': variant})\n"
    )
    (folder / "mine.py").write_text(code)
    assert config.read(f"{folder}/config.json") == {"name": "n"}
    assert config.read(f"{folder}/mine.py:a,b") == {"name": "a,b"} and config.read(f"{folder}/mine.py") == {"name": ""}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.read("~/exp:1/config.json") == {"name": "n"}
    with pytest.raises(UserError, match=r"^gone:1/config\.json: no such config file"):
        config.read("gone:1/config.json")
    with pytest.raises(UserError, match=r"takes no presets"):
        config.read(f"{folder}/config.json:tiny")


@pytest.mark.parametrize(
    "flag",
    [
        "--config.data.buckets=" + "[" * 5000,
        "--config.data.buckets=" + "[" * 5000 + "]" * 5000,
        "--config.data.buckets=" + "(" * 5000,
        "--config.seed=" + "9" * 100_000,
        "--config.optimizer.learning_rate=1e400",
        "--config.optimizer.learning_rate=nan",
        "--config.model.channels=" + "1," * 5000,
        "--config.model.channels=10000000000,8,8,8",
        "--config.data.height=8000000",
        "--config.data.scenes=10000000000",
        "--config.data.threads=1000000",
        "--config.mesh.fsdp=1000000000",
        '--config.optimizer.groups=[{"pattern": "a{99999999999999999999}"}]',
        "--config." + "x" * 100_000 + "=1",
        "--config." + "a." * 50_000 + "b=1",
        "--config.model=" + "x" * 100_000,
        "--config.checkpoint.folder=~nobody-of-this-name/x",
        "x" * 100_000,
    ],
    ids=lambda flag: flag[:40],
)
def test_an_extreme_value_is_one_short_line(flag):
    with pytest.raises(UserError) as caught:
        config.build(MBQVAERecipe, config.override({"system": "mbq_vae"}, [flag]))
    assert len(str(caught.value)) < 500


def test_places_know_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for cls in (MBQVAERecipe, TextToVideoRecipe):
        for key in cls.places:
            if key != "features.weights":  # below a list
                values = config.override({"system": "any", "tokenizer": "t"}, [f"--config.{key}=~/x"])
                values = values if cls is TextToVideoRecipe else {k: v for k, v in values.items() if k != "tokenizer"}
                assert config.build(cls, values).at(key) == str(tmp_path / "x")
    recipe = config.build(MBQVAERecipe, {"system": "any", "data": {"manifest": "gs://a/b"}})
    assert recipe.data.manifest == "gs://a/b"

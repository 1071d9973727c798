"""Release folders: round trip, strictness, damage in one line, atomic writing, paths inside."""

import json
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motionaura_jax.core.errors import UserError
from motionaura_jax.weights import release

PARAMS = {
    "encoder": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.full(3, np.nan, np.float32)},
    "half": jnp.arange(4, dtype=jnp.bfloat16),
    "none": {},
}
EXTRA = {"count": jnp.int32(7)}
META = {"system": "toy", "recipe": {"system": "toy"}, "step": 3, "weights": "averaged", "versions": {}}


@pytest.fixture
def folder(tmp_path):
    release.write_folder(tmp_path / "toy", META, PARAMS, EXTRA)
    return tmp_path / "toy"


def abstract(params=PARAMS, extra=EXTRA):
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, (params, extra)))


def test_every_bit_comes_back_under_readable_names(folder):
    assert release.is_release(folder) and release.read_meta(folder) == META
    again = release.read_weights(folder, *abstract())
    assert jax.tree.structure(again) == jax.tree.structure((PARAMS, EXTRA))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves((PARAMS, EXTRA)), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())
    names = {"params/encoder/kernel", "params/encoder/bias", "params/half", "extra/count"}
    assert load_file(folder / "model.safetensors").keys() == names
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("change", "held", "needed"),
    [
        ({"half": None}, "params/half bfloat16[4]", "nothing else"),
        ({"new": np.zeros(2, np.float32)}, "nothing else", "params/new float32[2]"),
        ({"half": np.zeros(4, np.float16)}, "params/half bfloat16[4]", "params/half float16[4]"),
        ({"half": np.zeros((2, 2), jnp.bfloat16)}, "params/half bfloat16[4]", "params/half bfloat16[2, 2]"),
        ({"encoder": {str(i): np.zeros(1, np.float32) for i in range(9)}}, "params/encoder/bias", "and 6 more"),
    ],
)
def test_anything_but_the_exact_leaves_is_refused_with_both_lists(folder, change, held, needed):
    wanted = {name: leaf for name, leaf in {**PARAMS, **change}.items() if leaf is not None}
    with pytest.raises(UserError) as error:
        release.read_weights(folder, *abstract(wanted))
    holds, needs = str(error.value).split("; the config needs ")
    assert held in holds and needed in needs and "another architecture" in holds


@pytest.mark.parametrize("damage", [b"", b"x", b"garbage" * 30, 40, -1])
def test_a_damaged_weights_file_is_one_line(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:damage] if isinstance(damage, int) else damage)
    with pytest.raises(
        UserError, match=r"model.safetensors: is not a complete safetensors file .*; download or copy it again"
    ):
        release.read_weights(folder, *abstract())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[]", "an object was expected"),
        ({**META, "step": "3"}, "'step' is missing or of the wrong type"),
        ({key: META[key] for key in META if key != "recipe"}, "'recipe' is missing"),
        ({**META, "system": "other"}, "'system' and the recipe differ"),
        ({**META, "weights": "best"}, "'weights' is 'best'"),
        ({**META, "recipe": {"system": "toy", "tokenizer": 3}}, "tokenizer must be a path"),
        ({**META, "recipe": {"system": "toy", "text": "t5"}}, "text must be an object"),
        ({**META, "parts": ["tokenizer"]}, "'parts' must map keys of the recipe to folders"),
        ({**META, "parts": {"tokenizer": 3}}, "'parts' must map keys of the recipe to folders"),
        ({**META, "recipe": {"system": "toy", "a": "b"}, "parts": {"a.b.c": "folder"}}, "a must be an object"),
    ],
)
def test_a_damaged_config_is_one_line(folder, content, fault):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError) as error:
        release.read_meta(folder)
    assert fault in str(error.value) and "config.json: is damaged" in str(error.value)


def test_a_missing_config_is_one_line(folder):
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: is missing; copy the whole release folder"):
        release.read_meta(folder)


def with_part(folder, path, *, listed):
    """Write a release whose part `tokenizer` is at `path`; older releases do not list their parts."""
    parts = {"parts": {"tokenizer": path}} if listed else {}
    release.write_folder(folder, {**META, "recipe": {"system": "toy", "tokenizer": path}, **parts}, PARAMS, EXTRA)


@pytest.mark.parametrize("listed", [True, False])
def test_parts_lie_inside_the_folder(tmp_path, listed):
    for path in ("tokenizer", "parts/tokenizer"):
        with_part(tmp_path / "toy", path, listed=listed)
        assert release.read_meta(tmp_path / "toy")["recipe"]["tokenizer"] == str(tmp_path / "toy" / path)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "path", ["../../x", "tokenizer/../../x", "..", "/etc/x", "C:\\x", "C:x", "..\\x", "\\\\host\\x"]
)
def test_parts_outside_the_folder_are_refused_in_one_line(tmp_path, path, listed):
    with_part(tmp_path / "toy", path, listed=listed)
    with pytest.raises(UserError) as error:
        release.read_meta(tmp_path / "toy")
    line = str(error.value)
    assert f"config.json: is damaged (tokenizer is at {path!r}, outside the folder)" in line and "\n" not in line


def test_a_disk_that_fails_is_one_line(folder, monkeypatch):
    def fail(*_):
        raise release.SafetensorError("No space left on device")

    monkeypatch.setattr(release, "save_file", fail)
    with pytest.raises(UserError, match=r"model.safetensors: cannot be written \(No space left.*free disk space"):
        release.write_folder(folder, META, PARAMS, EXTRA)


def test_tensors_of_others_are_not_left_over(folder):
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "optimizer/count": np.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"the file holds optimizer/count float64\[1\]; the config needs nothing else"):
        release.read_weights(folder, *abstract())


@pytest.mark.parametrize(
    ("place", "left"),
    [
        ("/videos/a", "elsewhere/a"),
        ("C:\\Users\\me\\a.npz", "elsewhere/a.npz"),
        ("~/a", "elsewhere/a"),
        ("../a", "elsewhere/a"),
        ("gs://mine/a", "elsewhere/a"),
        ("runs/a", "runs/a"),
        ("me/model@0123abc", "me/model@0123abc"),
        ("scenes", "scenes"),
        ("", ""),
    ],
)
def test_of_paths_of_the_machine_the_last_name_stays(place, left):
    recipe = {"init_from": place, "data": {"manifest": place, "fps": 8.0}, "text": {"vocabulary": [place]}}
    recipe["features"] = [{"weights": place, "weight": 1.0}]
    kept = release.without_places(recipe, ("init_from", "data.manifest", "features.weights", "text.absent"))
    assert kept == {
        "init_from": left,
        "data": {"manifest": left, "fps": 8.0},
        "text": {"vocabulary": [place]},
        "features": [{"weights": left, "weight": 1.0}],
    }

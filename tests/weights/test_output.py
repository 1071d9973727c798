"""Output folders: atomic writing, and refusals to remove anything but exports."""

import errno

import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.weights import output, release

META = {"system": "toy", "recipe": {"system": "toy"}, "step": 3, "weights": "averaged", "versions": {}}
PARAMS = {"kernel": np.ones(2, np.float32)}
EXTRA = {}


@pytest.fixture
def folder(tmp_path):
    release.write_folder(tmp_path / "toy", META, PARAMS, EXTRA)
    return tmp_path / "toy"


def test_a_draft_takes_the_name_only_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "release"
    with pytest.raises(RuntimeError), output.draft(target) as folder:
        release.write_folder(folder, META, PARAMS, EXTRA)
        assert not target.exists()
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    for step in (1, 2):
        with output.draft(target, overwrite=True) as folder:
            release.write_folder(folder, {**META, "step": step}, PARAMS, EXTRA)
        assert release.read_meta(target)["step"] == step and list(target.parent.iterdir()) == [target]


def test_a_failing_exchange_leaves_the_old_release(folder, monkeypatch):
    replace = output.os.replace

    def fail(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    with pytest.raises(OSError), output.draft(folder, overwrite=True) as new:
        release.write_folder(new, {**META, "step": 4}, PARAMS, EXTRA)
        monkeypatch.setattr(output.os, "replace", fail)
    assert release.read_meta(folder)["step"] == 3 and list(folder.parent.iterdir()) == [folder]


def test_nothing_that_is_no_release_is_ever_replaced(folder, tmp_path):
    with pytest.raises(UserError, match=r"exists already; choose another name or add --overwrite"):
        output.check_output(folder, overwrite=False)
    with pytest.raises(
        UserError, match=r"exists and is not a release folder \(it holds no description.*choose another name"
    ):
        output.check_output(tmp_path, overwrite=True)
    output.check_output(tmp_path / "free", overwrite=False)


def test_a_folder_with_anything_else_in_it_is_not_replaced(folder):
    def refused(name):
        with pytest.raises(UserError, match=rf"is not a release folder \(.*{name}.*choose another name"):
            output.check_output(folder, overwrite=True)

    (folder / "thesis.txt").write_text("years of work")
    refused("thesis.txt is something else")
    (folder / "thesis.txt").rename(folder / "photos")
    refused("photos")
    (folder / "photos").unlink()
    (folder / "photos").mkdir()
    refused("photos")
    (folder / "photos").rmdir()
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "mine.json").write_text("{}")
    refused("tokenizer/mine.json")
    (folder / "tokenizer" / "mine.json").unlink()
    (folder / "tokenizer").rmdir()
    output.check_output(folder, overwrite=True)
    (folder / "README.md").symlink_to(folder / "config.json")
    refused("README.md")


def test_networks_of_any_name_and_what_tools_leave_are_replaced(folder):
    (folder / "unet").mkdir()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (folder / ".gitattributes").write_text("")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    output.check_output(folder, overwrite=True)
    (folder / ".cache" / "mine").mkdir()
    with pytest.raises(UserError, match=r"\.cache.* is something else"):
        output.check_output(folder, overwrite=True)


def test_an_empty_folder_may_become_an_export(tmp_path):
    with output.draft(tmp_path / "made", overwrite=False) as draft:
        (draft / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    output.check_output(tmp_path / "empty", overwrite=True)


@pytest.mark.parametrize("mark", ["model.safetensors", "training.json", "stablehlo.json", "adapter_config.json"])
def test_a_name_alone_does_not_make_a_folder_ours(tmp_path, mark):
    (tmp_path / mark).write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    with (
        pytest.raises(UserError, match=r"is not a release folder .*choose another name"),
        output.draft(tmp_path, overwrite=True),
    ):
        raise AssertionError("nothing may be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({mark, "config.json"})


def test_what_arrives_during_an_export_is_kept(folder):
    with pytest.raises(UserError, match=r"new.txt is something else"), output.draft(folder, overwrite=True):
        (folder / "new.txt").write_text("")
    assert (folder / "new.txt").exists() and list(folder.parent.iterdir()) == [folder]


def test_a_link_is_not_replaced(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match=r"link: is a link"):
        output.check_output(tmp_path / "link", overwrite=True)


def test_a_source_of_the_export_is_not_replaced(folder, tmp_path):
    part = folder / "tokenizer"
    part.mkdir()
    for target in (folder, part, tmp_path):
        with pytest.raises(UserError, match=r"which is being exported; choose another name for the output"):
            output.check_apart(target, ["someone/model@1", part])
    output.check_apart(part, [folder])
    output.check_apart(tmp_path / "free", [folder, part])

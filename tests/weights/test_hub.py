"""Folders and hub ids: folders need no network, ids without a network give a one-line error, uploads report the result."""

import json
import types
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants

from motionaura_jax import export
from motionaura_jax.core.errors import UserError
from motionaura_jax.pipelines.text_to_video import TextToVideo
from motionaura_jax.systems.loading import load_autoencoder
from motionaura_jax.weights import hub
from motionaura_jax.weights.hub import check_push, checkpoint_folder, model_folder
from tests.systems import tiny

TOKEN = "hf_" + "s" * 34


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refused(place):
    with pytest.raises(UserError) as error:
        model_folder(place)
    assert "\n" not in str(error.value) and "http" not in str(error.value)
    return str(error.value)


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert model_folder(str(tmp_path)) == tmp_path
    (tmp_path / "google" / "t5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(model_folder("google/t5")) == "google/t5"
    assert "no such folder" in refused("google/t6")


@pytest.mark.parametrize("place", ["nowhere", "/a/b", "a/b/c", "../a", "a/b@", "a b/c"])
def test_what_is_no_id_is_a_missing_folder(place):
    assert "no such folder" in refused(place)


def test_an_id_without_a_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    line = refused("organization/name@0123abc")
    assert "organization/name: is not a local folder and cannot be fetched" in line and "give the folder" in line


def test_revision_and_files_are_what_is_asked_for(tmp_path, monkeypatch, caplog):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path / "0123abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder("organization/name@v1.0").name == "0123abc"
    assert (asked["name"], asked["revision"]) == ("organization/name", "v1.0") and not caplog.text
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])
    model_folder("organization/name")
    assert asked["revision"] is None and "newest revision; pin it with organization/name@0123abc" in caplog.text


def test_an_unpinned_id_of_a_checkpoint_is_the_copy_in_the_cache(tmp_path, monkeypatch, caplog):
    """Nothing is fetched, and a log line names the revision."""
    snapshot = tmp_path / "models--organization--name" / "snapshots" / ("0123abcd" * 5)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--organization--name" / "refs").mkdir()
    (tmp_path / "models--organization--name" / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    recorded = hub.Recorded("organization/name", local=False)
    assert model_folder(recorded) == checkpoint_folder(recorded) == snapshot
    assert f"the revision in the local cache; pin it with organization/name@{snapshot.name}" in caplog.text
    with pytest.raises(UserError, match="is not fetched, and there is no copy here"):
        model_folder(hub.Recorded("organization/other", local=False))


class FakeApi:
    """In-memory hub with the interface of `huggingface_hub.HfApi`."""

    fault: Exception | None = None
    calls: ClassVar[list] = []

    def whoami(self):
        self.calls.append("whoami")
        if self.fault:
            raise self.fault

    def create_repo(self, name, *, private, exist_ok):
        assert private and exist_ok
        self.calls.append(name)

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        files = {str(path.relative_to(folder_path)): path.read_bytes() for path in folder_path.rglob("*.*")}
        self.calls.append((repo_id, files, commit_message, delete_patterns))
        if "closed" in repo_id:
            raise PermissionError("403 Forbidden: https://huggingface.co/api/x\nmore")
        return types.SimpleNamespace(oid="0123abc")


@pytest.fixture
def api(monkeypatch):
    fake = type("Api", (FakeApi,), {"calls": []})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return fake


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.save_tokenizer(tmp_path_factory.mktemp("runs") / "tokenizer")


def push(tokenizer, output, name, capsys):
    capsys.readouterr()
    status = export.main([f"--checkpoint={tokenizer}", f"--output={output}", f"--push_to_hub={name}", "--json"])
    return status, *capsys.readouterr()


def test_an_export_is_uploaded_and_its_pinned_id_is_a_checkpoint(tokenizer, tmp_path, api, capsys, monkeypatch):
    status, out, err = push(tokenizer, tmp_path / "there", "me/tokenizer", capsys)
    assert status == 0 and json.loads(out)["hub"] == "me/tokenizer@0123abc"
    asked, created, (name, files, message, deleted) = api.calls
    assert (asked, created, name) == ("whoami", "me/tokenizer", "me/tokenizer")
    assert files.keys() == {"config.json", "model.safetensors"} and "step 0" in message and "*.safetensors" in deleted
    assert not any(TOKEN in text for text in (out, err, message)) and not any(
        TOKEN.encode() in f for f in files.values()
    )

    def download(name, *, revision, allow_patterns, local_files_only=False):
        asked.append(local_files_only)
        assert (name, revision) == ("me/tokenizer", "0123abc")
        return str(tmp_path / "there")

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    opened, loaded = load_autoencoder("me/tokenizer@0123abc")
    assert opened.latent_space == load_autoencoder(tokenizer)[0].latent_space and loaded.path == tmp_path / "there"
    tiny.save_untrained(tmp_path / "run", **tiny.text_to_video("me/tokenizer@0123abc"))
    asked.clear()
    assert TextToVideo(tmp_path / "run").autoencoder.latent_space == opened.latent_space
    assert asked and all(asked), "a name in a checkpoint led to the network"
    asked.clear()
    TextToVideo(tmp_path / "run", tokenizer="me/tokenizer@0123abc")
    assert not any(asked)


def test_a_hub_that_lets_nobody_in_is_one_line_before_any_work(tokenizer, tmp_path, api, capsys):
    api.fault = OSError("Token is required; none found at https://huggingface.co")
    status, out, err = push(tokenizer, tmp_path / "there", "me/tokenizer", capsys)
    assert status == 2 and not out and not (tmp_path / "there").exists()
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "hf auth login" in line and "http" not in line


def test_a_refused_upload_leaves_the_folder_and_says_how_to_go_on(tokenizer, tmp_path, api, capsys):
    status, _, err = push(tokenizer, tmp_path / "there", "me/closed", capsys)
    assert status == 2 and f"hf upload me/closed {tmp_path / 'there'}" in err and "403 Forbidden" in err
    assert load_autoencoder(tmp_path / "there")


@pytest.mark.parametrize("name", ["tokenizer", "me/tokenizer@main", "a/b/c"])
def test_what_is_no_id_is_not_pushed_to(name, tokenizer, tmp_path, api, capsys):
    status, _, err = push(tokenizer, tmp_path / "there", name, capsys)
    assert status == 2 and "give ORGANIZATION/NAME" in err and not api.calls and not (tmp_path / "there").exists()


def test_without_a_network_a_push_and_a_checkpoint_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for work in (lambda: check_push("me/tokenizer"), lambda: checkpoint_folder("me/tokenizer@0123abc")):
        with pytest.raises(UserError) as error:
            work()
        assert "network" in str(error.value) and "\n" not in str(error.value) and TOKEN not in str(error.value)


@pytest.mark.parametrize("place", ["runs/t2v", "/a/b@c", "org/name", "x"])
def test_only_a_pinned_id_is_looked_up_on_the_hub(place, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert checkpoint_folder(place) == place
    with pytest.raises(UserError, match=r"no such checkpoint; .*ORGANIZATION/NAME@REVISION"):
        load_autoencoder(place)
    (tmp_path / "runs@1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoint_folder("runs@1/t2v@main") == "runs@1/t2v@main"

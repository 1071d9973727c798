"""Folders and hub ids: a folder needs no network, an id without one is a single line, a copy serves without."""

import huggingface_hub
import pytest
from huggingface_hub import constants

from motionaura_jax.errors import UserError
from motionaura_jax.weights.hub import model_folder


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
    assert "organization/name: is no folder here, and cannot be fetched" in line and "give the folder" in line


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
    assert asked["revision"] is None and "pin it with organization/name@0123abc" in caplog.text

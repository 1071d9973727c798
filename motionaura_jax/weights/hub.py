"""Folders of models here and on the Hugging Face hub: fetched by id, and uploaded, only where somebody asks for it.

Who may read and write is what `hf auth login` or HF_TOKEN say to huggingface_hub; no token passes through here.
"""

import logging
import re
from os import PathLike, fspath
from pathlib import Path

from motionaura_jax.core.errors import UserError

logger = logging.getLogger(__name__)

SAFE = ("*.json", "*.safetensors", "*.model", "*.txt")
_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def model_folder(place: str, patterns: tuple[str, ...] = SAFE) -> Path:
    """Returns `place` if it is a folder, else the local copy of the hub's `ORGANIZATION/NAME[@REVISION]`.

    A copy that was fetched before serves without a network.  Without a revision the newest one is taken, and named in a log
    line to be pinned.

    Args:
      patterns: files to fetch.

    Raises:
      UserError: no such folder, and no hub id or one that cannot be fetched.
    """
    if Path(place).is_dir():
        return Path(place)
    match = _match(place)
    if match is None:
        raise UserError(
            f"{place}: no such folder; give that of a published model, or a hub id such as google/name@revision"
        )
    return _fetch(match["id"], match["revision"], patterns)


def checkpoint_folder(place: str | PathLike[str]) -> str | PathLike[str]:
    """Returns the local copy of the hub's `ORGANIZATION/NAME@REVISION`, and any other `place` as it is.

    Only an id with a revision is fetched, so that a mistyped path never is, and that a checkpoint stays what it was.

    Raises:
      UserError: such an id, and it cannot be fetched.
    """
    match = None if Path(place).exists() else _match(fspath(place))
    return _fetch(match["id"], match["revision"], SAFE) if match and match["revision"] else place


def pinned(place: str) -> str:
    """Returns a folder as it is, and a hub id with the revision that it means now, which is fetched.

    Raises:
      UserError: see `model_folder`.
    """
    folder = model_folder(place)
    match = None if Path(place).is_dir() else _match(place)
    return f"{match['id']}@{folder.name}" if match else place


def check_push(name: str) -> None:
    """Refuses what an upload would refuse in the end.

    Raises:
      UserError: `name` is no `ORGANIZATION/NAME`, nobody is logged in, or there is no network.
    """
    from huggingface_hub import HfApi

    match = _ID.fullmatch(name)
    if match is None or match["revision"]:
        raise UserError(f"--push_to_hub={name}: is no id on the hub; give ORGANIZATION/NAME")
    try:
        HfApi().whoami()
    except _faults() as error:
        raise UserError(
            f"--push_to_hub={name}: the hub does not let us in ({_reason(error)}); run `hf auth login`, check the network, "
            f"or leave the flag out; nothing was written"
        ) from None


def push(folder: Path, name: str, message: str) -> str:
    """Uploads a finished folder as one commit; a repository that does not exist yet is made, for its owner's eyes only.

    Returns:
      `ORGANIZATION/NAME@REVISION`, which is a checkpoint of exactly these files.

    Raises:
      UserError: the hub refuses, or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message,
            delete_patterns=["*.safetensors", "*.safetensors.index.json"],  # else older shards would be read
        )
    except _faults() as error:
        raise UserError(
            f"--push_to_hub={name}: could not be uploaded ({_reason(error)}); {folder} is complete, upload it with "
            f"`hf upload {name} {folder}`"
        ) from None
    return f"{name}@{commit.oid}"


def _match(place: str) -> re.Match[str] | None:
    """The parts of a hub id; None of a path, or of what begins with a folder that is here."""
    return None if Path(place.split("/")[0]).is_dir() else _ID.fullmatch(place)


def _fetch(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except _faults() as error:
        raise UserError(
            f"{name}: is no folder here, and cannot be fetched from the hub ({_reason(error)}); check id, "
            f"revision and network, or download it elsewhere and give the folder"
        ) from None
    if revision is None:
        logger.warning("%s: took the newest revision; pin it with %s@%s", name, name, folder.name)
    return folder


def _faults() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the network, the hub, an id or a login is at fault."""
    from huggingface_hub.errors import HTTPError, RevisionResolutionError

    return OSError, ValueError, HTTPError, RevisionResolutionError


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error))}"


def shorten(text: str) -> str:
    """The first sentence of a foreign message, without the addresses in it."""
    return re.sub(r"https?://\S+", "...", " ".join(text.split()))[:120]

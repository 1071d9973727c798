"""Model folders, local or on the Hugging Face hub: download by id, and upload on request only.

huggingface_hub takes its access rights from `hf auth login` or HF_TOKEN; no token passes through this module.
"""

import logging
import re
from os import PathLike, fspath
from pathlib import Path
from typing import Self

from motionaura_jax.core.errors import UserError, reason

logger = logging.getLogger(__name__)

REMOVED = "elsewhere"
"""First folder of a path that an export has removed (see `release.without_places`); never an id on the hub."""

SAFE = ("*.json", "*.safetensors", "*.model", "*.txt")
_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class Recorded(str):
    """Place that the config of a checkpoint names, and not the user.

    A checkpoint may be untrusted, so such a place is never fetched from the hub. A copy fetched earlier serves, even
    without a revision: whoever opens it compares its hash with the one that training recorded.

    Attributes:
      local: whether the place may be a folder of this machine.
    """

    local: bool

    def __new__(cls, place: str, *, local: bool) -> Self:
        """Mark a place."""
        # pathlib interns the name of a folder, which must be a plain string. Those that it splits off are.
        made = super().__new__(cls, f"./{place}" if place and "/" not in place else place)
        made.local = local
        return made

    def __str__(self) -> str:
        """Return the place, still marked."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return the place, which cannot change."""
        return self


def model_folder(place: str, patterns: tuple[str, ...] = SAFE) -> Path:
    """Return `place` if it is a folder, else the local copy of the hub's `ORGANIZATION/NAME[@REVISION]`.

    A copy fetched earlier works without a network. Without a revision, the newest one is used, and a log line names it so
    that the user can pin it. A `Recorded` id is not fetched.

    Args:
      patterns: files to fetch.

    Raises:
      UserError: `place` is neither a folder nor a hub id that can be fetched.
    """
    if _is_here(place) and Path(place).is_dir():
        return Path(place)
    match = _match(place)
    if match is None:
        raise UserError(
            f"{place}: no such folder; give the folder of a published model, or a hub id such as google/name@revision"
        )
    return _fetch(place, match, patterns)


def checkpoint_folder(place: str | PathLike[str]) -> str | PathLike[str]:
    """Return the local copy of the hub's `ORGANIZATION/NAME@REVISION`, and any other `place` unchanged.

    Only ids with a revision are fetched, so that a mistyped path is never fetched and a checkpoint never changes.

    Raises:
      UserError: the id cannot be fetched.
    """
    match = None if _is_here(place) and Path(place).exists() else _match(fspath(place))
    return _fetch(place, match, SAFE) if match and (match["revision"] or not _is_here(place)) else place


def pinned(place: str) -> str:
    """Return a folder unchanged, and a hub id with its current revision, which is fetched.

    Raises:
      UserError: see `model_folder`.
    """
    folder = model_folder(place)
    match = None if _is_here(place) and Path(place).is_dir() else _match(place)
    return f"{match['id']}@{folder.name}" if match else place


def check_push(name: str) -> None:
    """Check in advance that an upload can succeed.

    Raises:
      UserError: `name` is not `ORGANIZATION/NAME`, nobody is logged in, or there is no network.
    """
    from huggingface_hub import HfApi

    match = _ID.fullmatch(name)
    if match is None or match["revision"]:
        raise UserError(f"--push_to_hub={name}: is not a hub id; give ORGANIZATION/NAME")
    try:
        HfApi().whoami()
    except _faults() as error:
        raise UserError(
            f"--push_to_hub={name}: cannot log in to the hub ({reason(error)}); run `hf auth login`, check the network, "
            f"or leave the flag out; nothing was written"
        ) from None


def push(folder: Path, name: str, message: str) -> str:
    """Upload a finished folder as one commit; create the repository, private, if it does not exist.

    Returns:
      `ORGANIZATION/NAME@REVISION`, a checkpoint of exactly these files.

    Raises:
      UserError: the hub refuses or cannot be reached; the folder is kept.
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
            delete_patterns=["*.safetensors", "*.safetensors.index.json"],  # otherwise old shards would be read
        )
    except _faults() as error:
        raise UserError(
            f"--push_to_hub={name}: upload failed ({reason(error)}); {folder} is complete, upload it with "
            f"`hf upload {name} {folder}`"
        ) from None
    return f"{name}@{commit.oid}"


def _match(place: str) -> re.Match[str] | None:
    """Match a hub id; return None for a path, an existing first folder, or a path that an export has removed."""
    first = place.split("/")[0]
    return None if first == REMOVED or (_is_here(place) and Path(first).is_dir()) else _ID.fullmatch(place)


def _is_here(place: str | PathLike[str]) -> bool:
    """Tell whether a place may be a folder of this machine."""
    return not isinstance(place, Recorded) or place.local


def _fetch(place: str | PathLike[str], match: re.Match[str], patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    name, revision = match["id"], match["revision"]
    known_only = isinstance(place, Recorded)
    disable_progress_bars()
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=known_only)
        )
    except _faults() as error:
        if known_only:
            raise UserError(
                f"{place}: only the checkpoint names this model, so it is not fetched, and there is no copy here; name it "
                f"yourself with its revision ({name}@{revision or 'REVISION'}): --text_encoder or --tokenizer of `sample` and "
                f"`export`, --config.KEY of `train`"
            ) from None
        raise UserError(
            f"{name}: is not a local folder and cannot be fetched from the hub ({reason(error)}); check id, "
            f"revision and network, or download it elsewhere and give the folder"
        ) from None
    if revision is None:
        kind = "the revision in the local cache" if known_only else "the newest revision"
        logger.warning("%s: using %s; pin it with %s@%s", name, kind, name, folder.name)
    return folder


def _faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that huggingface_hub raises for faults of the network, the hub, an id or a login."""
    from huggingface_hub.errors import HTTPError, RevisionResolutionError

    return OSError, ValueError, HTTPError, RevisionResolutionError

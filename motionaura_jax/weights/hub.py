"""Folders of published models: one on this machine, or one that is fetched from the Hugging Face hub by its id."""

import logging
import re
from pathlib import Path

from motionaura_jax.errors import UserError

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
    match = _ID.fullmatch(place)
    if match is None or Path(place.split("/")[0]).is_dir():
        raise UserError(
            f"{place}: no such folder; give that of a published model, or a hub id such as google/name@revision"
        )
    return _fetch(match["id"], match["revision"], patterns)


def _fetch(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionResolutionError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError, RevisionResolutionError) as error:
        reason = shorten(str(error))
        raise UserError(
            f"{name}: is no folder here, and cannot be fetched from the hub ({type(error).__name__}: {reason}); check id, "
            f"revision and network, or download it elsewhere and give the folder"
        ) from None
    if revision is None:
        logger.warning("%s: took the newest revision; pin it with %s@%s", name, name, folder.name)
    return folder


def shorten(text: str) -> str:
    """The first sentence of a foreign message, without the addresses in it."""
    return re.sub(r"https?://\S+", "...", " ".join(text.split()))[:120]

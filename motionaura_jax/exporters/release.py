"""Release folders: `config.json`, `model.safetensors`, and one subfolder per part (a release, or a copy of a published part)."""

import pathlib

from motionaura_jax.exporters.base import Opened, Options, check
from motionaura_jax.weights import release


def write(folder: pathlib.Path, opened: Opened, options: Options) -> None:
    """Write a release with its parts into an empty folder and verify it by reading it back.

    Raises:
      UserError: the disk is full or not writable, or a weight reads back differently.
    """
    opened.copy_published(folder, options.shard_bytes)
    for role, part in opened.parts.items():
        (folder / role).mkdir()
        write(folder / role, part, options)
    inside = {role: role for role in (*opened.parts, *opened.copied)}
    model = opened.model
    release.write_folder(folder, opened.meta(inside), model.params, model.extra, options.dtype)
    check(model, folder)

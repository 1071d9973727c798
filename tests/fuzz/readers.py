"""Readers of untrusted files, each with small valid files to mutate.

A reader is good if it returns, or raises `UserError` with a message of one line, for any content of its files.
"""

import dataclasses
import functools
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from motionaura_jax.data import latents, manifest, preflight, video
from motionaura_jax.pipelines.outputs import Target
from motionaura_jax.pipelines.prompts import read_prompts
from motionaura_jax.training.monitoring.writers import read_metrics
from tests.fuzz import media, models, mutators
from tests.fuzz.mutators import Mutator

Files = Mapping[str, bytes]
Seeds = Callable[[], dict[str, Files]]
Read = Callable[[Path], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Reader of one kind of file.

    Attributes:
      group: "media", "json", "tables" or "safetensors".
      reads: functions of the path of the mutated file; each is tried.
      seeds: makes valid files by the name of the seed; the first file of a seed is mutated.
      share: how often this reader is chosen, relative to the others of its group.
    """

    name: str
    group: str
    mutate: Mutator
    seeds: Seeds
    reads: tuple[Read, ...]
    share: float = 1.0

    @functools.cached_property
    def valid(self) -> dict[str, Files]:
        """Return the seeds, made once."""
        return self.seeds()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Files of one reading: those of a seed, with other content in the first.

    Attributes:
      seed: name of the seed, or of a file that stands alone.
      number: seed of the mutations, or -1 for a case that no seed describes.
    """

    reader: str
    seed: str
    data: bytes
    number: int = -1

    @property
    def files(self) -> dict[str, bytes]:
        """Return the content of all files by name; the mutated one is the first."""
        seed = READERS[self.reader].valid.get(self.seed, {self.seed: b""})
        return {**seed, next(iter(seed)): self.data}


def make_case(number: int, groups: Sequence[str], readers: Sequence[Reader] = ()) -> Case:
    """Make the mutation with this number; the same number, groups and seeds give the same bytes."""
    rng = random.Random(f"{number} {','.join(groups)}")
    group = rng.choice(groups)
    known = readers or [reader for reader in READERS.values() if reader.group == group]
    (reader,) = rng.choices(known, [reader.share for reader in known])
    name = rng.choice(list(reader.valid))
    data = next(iter(reader.valid[name].values()))
    for _ in range(rng.choice((1, 1, 1, 2))):
        try:
            data = reader.mutate(data, rng)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            data = mutators.mutate_bytes(data, rng)  # an earlier mutation took away the structure
    return Case(reader=reader.name, seed=name, data=data, number=number)


def _one(name: str, data: bytes | str) -> dict[str, Files]:
    return {name: {name: data if isinstance(data, bytes) else data.encode()}}


def _media_files() -> dict[str, Files]:
    return {name: {name: data} for name, data in media.seeds()}


def _clip(path: Path) -> object:
    count = 1 if path.suffix in video.IMAGE_SUFFIXES else 3
    return video.read_clip(path, start=0.1, fps=8.0, num_frames=count, cover=(media.SIZE, media.SIZE))


def _frames(path: Path) -> object:
    return video.read_video(path, max_frames=4)


_ROWS = (
    ("a.mp4", "A red circle, moving up", "1"),
    ("sub/b.mp4", 'She said "yes"', "2"),
    ("c.mp4", "Caf\u00e9 \u2014 \u6771\u4eac", ""),
)


def _csv() -> dict[str, Files]:
    quoted = ['"' + '","'.join(cell.replace('"', '""') for cell in row) + '"' for row in _ROWS]
    plain = ["a.mp4,a circle,x", "sub/b.mp4,a square,y"]
    return {
        "plain.csv": {"plain.csv": "\n".join(["path,caption,mask", *plain, ""]).encode()},
        "quoted.csv": {"quoted.csv": "\n".join(['"file","text","mask"', *quoted, ""]).encode()},
    }


def _json_lines() -> dict[str, Files]:
    lines = [json.dumps({"path": path, "caption": text, "mask": mask}) for path, text, mask in _ROWS]
    return _one("rows.jsonl", "\n".join([*lines, ""]))


def _folder_of_clips() -> dict[str, Files]:
    clips = dict.fromkeys(("a.mp4", "sub/b.mp4", "c.mp4"), b"not read")
    tables = {**_csv(), **_json_lines()}
    named = {"metadata.csv": tables["quoted.csv"]["quoted.csv"], "metadata.jsonl": tables["rows.jsonl"]["rows.jsonl"]}
    return {name: {name: data, **clips} for name, data in named.items()} | {
        "a.txt": {"a.txt": b"A red circle\nmoving up\n", **clips}
    }


def _sidecar(path: Path) -> object:
    record = {"num_frames": 4, "height": 64, "width": 64, "checkpoint_hash": "00", "prompt": "a circle"}
    target = Target(job=None, path=path.with_suffix(".mp4"), label="", record=record)
    return target.is_ours, target.recorded_files, target.is_done()


def _hash_files() -> dict[str, Files]:
    return {"files": {latents.FILES: json.dumps(_STAMPS).encode(), "clip.mp4": b"not read"}}


def _file_hashes(path: Path) -> object:
    clip = path.with_name("clip.mp4")
    return latents.FileHashes(path.parent).content(manifest.Record(path=clip, caption=None, id="clip.mp4"))


def _folder(read: Read) -> Read:
    """Return a function that reads the folder of a file."""
    return lambda path: read(path.parent)


_SIDECAR = {
    "checkpoint": "run",
    "checkpoint_hash": "00",
    "num_frames": 4,
    "height": 64,
    "width": 64,
    "prompt": "a circle",
}
_STAMPS = {"clip.mp4": [8, 1, "00" * 32], "other.mp4": [9, 2, "ff" * 32]}
_REJECTED = [{"file": f"{name}.mp4", "reason": "is empty", "remedy": "copy it"} for name in "ab"]
_METRICS = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
_PROMPTS = [{"prompt": "a red circle", "negative_prompt": "blue"}, {"prompt": "caf\u00e9"}]
_BOTH = mutators.any_of(mutators.mutate_json, mutators.mutate_json, mutators.mutate_json, mutators.mutate_bytes)
_LINES = mutators.any_of(
    mutators.mutate_json_lines, mutators.mutate_json_lines, mutators.mutate_text, mutators.mutate_bytes
)
_TABLE = mutators.any_of(mutators.mutate_text, mutators.mutate_text, mutators.mutate_bytes)
_TENSORS = mutators.any_of(mutators.mutate_safetensors, mutators.mutate_safetensors, mutators.mutate_bytes)


def _lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _json_reader(name: str, seeds: Seeds, *reads: Read, share: float = 1.0) -> Reader:
    mutate = _LINES if name.endswith("lines") else _BOTH
    return Reader(name=name, group="json", mutate=mutate, seeds=seeds, reads=reads, share=share)


def _tensor_reader(name: str, seeds: Seeds, read: Read, share: float = 1.0) -> Reader:
    return Reader(name=name, group="safetensors", mutate=_TENSORS, seeds=seeds, reads=(read,), share=share)


def _companions(path: Path) -> object:
    return manifest.read_manifest(path, ("mask",))


_ALL = (
    Reader(name="media", group="media", mutate=mutators.mutate_bytes, seeds=_media_files, reads=(video.probe, _clip, _frames)),
    Reader(name="manifest csv", group="tables", mutate=_TABLE, seeds=_csv, reads=(manifest.read_manifest, _companions)),
    Reader(name="manifest lines", group="tables", mutate=_LINES, seeds=_json_lines, reads=(manifest.read_manifest, _companions)),
    Reader(
        name="folder tables",
        group="tables",
        mutate=_TABLE,
        seeds=_folder_of_clips,
        reads=(_folder(manifest.read_manifest), _folder(_companions)),
    ),
    Reader(
        name="prompts",
        group="tables",
        mutate=_TABLE,
        seeds=lambda: _one("prompts.txt", "a red circle\n\nA blue square, growing\ncaf\u00e9\n"),
        reads=(read_prompts,),
    ),
    _json_reader("prompts lines", lambda: _one("prompts.jsonl", _lines(_PROMPTS)), read_prompts),
    _json_reader("rejected lines", lambda: _one("rejected.jsonl", _lines(_REJECTED)), preflight.Rejections),
    _json_reader("metrics lines", lambda: _one("metrics.jsonl", _lines(_METRICS)), read_metrics),
    _json_reader("sidecar", lambda: _one("video.json", json.dumps(_SIDECAR)), _sidecar),
    _json_reader("file hashes", _hash_files, _file_hashes),
    _json_reader("cache", models.cache, _folder(models.read_cache)),
    _json_reader("config", models.config_file, models.read_config),
    _json_reader("provenance", lambda: _one("provenance.json", '{"data": ["clips"], "license": "CC0"}'), models.read_provenance),
    _json_reader("release config", models.release_config, _folder(models.open_described), share=2),
    _json_reader("trained release config", models.trained_config, _folder(models.load_release), share=0.5),
    _json_reader("export config", models.export_config, _folder(models.open_described)),
    _json_reader("workdir config", models.workdir_config, _folder(models.find_step)),
    _json_reader("step metadata", models.step_metadata, lambda path: models.find_step(path.parents[3])),
    _json_reader("shard index", models.shard_index, _folder(models.read_tensors)),
    _json_reader("adapter config", models.adapter_config, _folder(models.read_adapter)),
    _json_reader("tower config", models.tower_config, _folder(models.plan_tower), share=0.5),
    _json_reader("tokenizer", models.tokenizer, _folder(models.read_tokenizer)),
    _tensor_reader("tensors", models.tensors, models.read_tensors, share=3),
    _tensor_reader("shards", models.shards, _folder(models.read_tensors)),
    _tensor_reader("release weights", models.release_weights, _folder(models.read_toy), share=3),
    _tensor_reader("export weights", models.export_weights, _folder(models.read_toy_export)),
    _tensor_reader("export rest", models.export_rest, _folder(models.read_toy_export)),
    _tensor_reader("adapter weights", models.adapter_weights, _folder(models.read_adapter)),
    _tensor_reader("trained release weights", models.trained_weights, _folder(models.load_release), share=0.3),
)  # fmt: skip
READERS = {reader.name: reader for reader in _ALL}
GROUPS = tuple(dict.fromkeys(reader.group for reader in _ALL))

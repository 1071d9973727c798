"""Installed distributions and conflicts between them, from their metadata; imports none of them."""

import importlib.metadata as metadata
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

PACKAGE = "motionaura_jax"
PROJECT_FILE = Path(__file__).parents[2] / "pyproject.toml"


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An optional part of the installation.

    Attributes:
      distributions: installed by `pip install "motionaura_jax[NAME]"`.
      without: the consequence of leaving it out, for the report.
    """

    distributions: tuple[str, ...]
    without: str


EXTRAS = {
    "cuda12": Extra(distributions=("jax-cuda12-plugin",), without="no NVIDIA GPU with a CUDA 12 driver"),
    "cuda13": Extra(distributions=("jax-cuda13-plugin",), without="no NVIDIA GPU with a CUDA 13 driver"),
    "gpu-estimate": Extra(
        distributions=("jax-cuda12-plugin", "nvidia-cudnn-cu12"), without="no estimates from programs for GPUs"
    ),
    "tpu": Extra(distributions=("libtpu",), without="no TPU"),
    "parity": Extra(distributions=("torch",), without="no comparison with PyTorch in tests"),
    "tfds": Extra(distributions=("tensorflow-datasets", "importlib-resources"), without="no TensorFlow Datasets"),
    "t5": Extra(distributions=("sentencepiece",), without="no tokenizers that are published as spiece.model alone"),
    "eval": Extra(distributions=("scikit-learn",), without="no embedding plots and neighbor searches of evaluations"),
    "cloud": Extra(distributions=("gcsfs", "s3fs"), without="no checkpoints in gs:// and s3:// buckets"),
    "demo": Extra(distributions=("gradio",), without="no browser application"),
    "curate": Extra(
        distributions=("ray", "scenedetect"), without="no shot detection and no curation on several machines"
    ),
    "dev": Extra(
        distributions=("beartype", "hypothesis", "mypy", "pytest", "pytest-xdist", "ruff"),
        without="no tests, no linters",
    ),
}


def core_requirements() -> list[Requirement]:
    """Return the requirements of the package without extras, from its metadata, or from pyproject.toml if not installed."""
    if version(PACKAGE) is None:
        lines = tomllib.loads(PROJECT_FILE.read_text())["project"]["dependencies"]
    else:
        lines = metadata.requires(PACKAGE) or []
    return [requirement for requirement in map(Requirement, lines) if applies(requirement)]


def applies(requirement: Requirement) -> bool:
    """Return True if a requirement applies to this Python and system, without extras."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def version(name: str) -> str | None:
    """Return the installed version of a distribution, None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(core: Sequence[Requirement]) -> dict[str, str | None]:
    """Return versions by canonical name: of `core` and jaxlib (None if missing), and of installed extras."""
    required = {canonical(name): version(name) for name in (*(item.name for item in core), "jaxlib")}
    optional = {name: version(name) for extra in EXTRAS.values() for name in extra.distributions}
    return required | {name: found for name, found in optional.items() if found is not None}


def canonical(name: str) -> str:
    """Return the name in lower case with dashes, as the package index writes it."""
    return name.lower().replace("_", "-")


def extras() -> dict[str, bool]:
    """Return True for each extra whose distributions are all installed."""
    return {name: all(map(version, extra.distributions)) for name, extra in EXTRAS.items()}


def conflicts(core: Sequence[Requirement]) -> list[str]:
    """Return the unmet requirements of the package and of `core`, e.g. a jaxlib for another jax."""
    return [line for owner, requirement in _stated(core) for line in _broken(owner, requirement)]


def _stated(core: Sequence[Requirement]) -> Iterator[tuple[str, Requirement]]:
    for requirement in core:
        yield PACKAGE, requirement
        if version(requirement.name) is not None:
            own = map(Requirement, metadata.requires(requirement.name) or ())
            yield from ((requirement.name, item) for item in own if applies(item))


def _broken(owner: str, requirement: Requirement) -> Iterator[str]:
    found = version(requirement.name)
    wanted = f"{owner} needs {requirement.name}{requirement.specifier}"
    if found is None:
        yield f"{wanted}, which is not installed"
    elif not requirement.specifier.contains(found, prereleases=True):
        yield f"{wanted}, installed is {found}"

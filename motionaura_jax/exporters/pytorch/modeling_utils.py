"""Loading of exported networks: settings from `config.json`, weights from one safetensors file or several shards; norms."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_EPSILON = 1e-6


class Pretrained(nn.Module):
    """Base class of exported networks; `config`, an instance of the dataclass `Config`, describes one completely."""

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None, torch_dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load the network in `folder` (see `model_folder`) on the CPU, in evaluation mode.

        Raises:
          FileNotFoundError: a file is missing.
          RuntimeError, TypeError: the weights or settings belong to another network.
        """
        folder = model_folder(folder, revision)
        return cls.filled(read_settings(folder / CONFIG), read_weights(folder), torch_dtype)

    @classmethod
    def filled(cls, settings: dict[str, Any], weights: dict[str, Tensor], torch_dtype: torch.dtype) -> Self:
        """Build the network from settings and weights; every weight must be used exactly once.  See `from_pretrained`."""
        known = {field.name for field in dataclasses.fields(cls.Config)}
        with torch.device("meta"):  # spend no time or memory on random weights
            network = cls(cls.Config(**{name: value for name, value in settings.items() if name in known}))
        network.load_state_dict({name: tensor.to(torch_dtype) for name, tensor in weights.items()}, assign=True)
        return network.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and activations; norms, softmax and transforms run in float32."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device


def model_folder(place: str | Path, revision: str | None) -> Path:
    """Return `place` if it is a folder, else a local copy of the Hugging Face hub model `place` at `revision`.

    Raises:
      ValueError: `place` is no folder and no revision is given; an id without a revision may change its meaning.
    """
    if Path(place).is_dir():
        return Path(place)
    if revision is None:
        raise ValueError(f"{place}: no such folder; to download a model from the hub, give its revision as well")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(place), revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object; convert lists to tuples and drop entries whose name starts with an underscore."""
    settings = json.loads(path.read_text("utf-8"))
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if not name.startswith("_")
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a component from its single file or from the shards listed in its index.

    Raises:
      ValueError: the index names a file outside `folder`.
    """
    if not (folder / INDEX).is_file():
        return load_file(folder / WEIGHTS)
    shards = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    if any(Path(shard).name != shard for shard in shards):
        raise ValueError(f"{folder / INDEX}: names a shard outside its folder")
    return {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Apply LayerNorm in float32 and return float32."""
    scale, shift = (None if part is None else part.float() for part in (weight, bias))
    return F.layer_norm(x.float(), x.shape[-1:], scale, shift, _EPSILON)


def rms_norm(x: Tensor) -> Tensor:
    """Divide vectors by their root mean square; computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=_EPSILON).to(x.dtype)

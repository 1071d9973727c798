"""Opens a network of an exported folder: its settings in `config.json`, its weights in safetensors, whole or in shards."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


class Pretrained(nn.Module):
    """A network that `config`, a frozen dataclass of the class `Config`, describes completely."""

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None, torch_dtype: torch.dtype = torch.float32
    ) -> Self:
        """Opens the network in `folder` (see `model_folder`), in evaluation mode on the CPU.

        Raises:
          FileNotFoundError: a file is missing.
          RuntimeError, TypeError: weights or settings of another network.
        """
        folder = model_folder(folder, revision)
        return cls.filled(read_settings(folder / CONFIG), read_weights(folder), torch_dtype)

    @classmethod
    def filled(cls, settings: dict[str, Any], weights: dict[str, Tensor], torch_dtype: torch.dtype) -> Self:
        """The network of these settings and weights, each used once; see `from_pretrained`."""
        known = {field.name for field in dataclasses.fields(cls.Config)}
        with torch.device("meta"):  # no time and memory for random weights
            network = cls(cls.Config(**{name: value for name, value in settings.items() if name in known}))
        network.load_state_dict({name: tensor.to(torch_dtype) for name, tensor in weights.items()}, assign=True)
        return network.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which activations are computed; norms, softmax and transforms take float32."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def model_folder(place: str | Path, revision: str | None) -> Path:
    """Returns `place` if it is a folder, else the local copy of the Hugging Face hub's `place` at `revision`.

    Raises:
      ValueError: no folder, and no revision; without one, what an id means would change.
    """
    if Path(place).is_dir():
        return Path(place)
    if revision is None:
        raise ValueError(f"{place}: no such folder; to fetch a model from the hub, give its revision as well")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(place), revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a JSON object with its lists as tuples, without the entries whose name starts with an underscore."""
    settings = json.loads(path.read_text("utf-8"))
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if not name.startswith("_")
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Reads all tensors of a component; an index beside them names the shards.

    Raises:
      ValueError: the index names a file outside of `folder`.
    """
    if not (folder / INDEX).is_file():
        return load_file(folder / WEIGHTS)
    shards = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    if any(Path(shard).name != shard for shard in shards):
        raise ValueError(f"{folder / INDEX}: names a shard outside of its folder")
    return {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}

"""Low-rank adapters of a frozen transformer: L'(x) = L(x) + B GELU(A x).  MotionAura section 4 and D.5.

File and tensor names follow PEFT: `adapter_config.json`, and `adapter_model.safetensors` with `LAYER.lora_A.weight`
(rank, in) and `LAYER.lora_B.weight` (out, rank).  PEFT's own adapters have no activation.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_ADAPTER = re.compile(r"\.lora_[AB]\.weight$")
_KEYS = {"r": int, "lora_alpha": int, "target_modules": list, "base_model_hash": str}
_ASSUMED = {"peft_type": "LORA", "bias": "none"}
# Settings that say nothing about what an adapter computes once its tensors are there.
_IRRELEVANT = frozenset(
    (
        "activation",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    )
)
_MODULES = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "o"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapted layers: attention projections ("q", "k", "v", "o") and the MLP; a rank of 0 disables all adapters."""

    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    lora_mlp: bool = False
    lora_activation: Literal["gelu", "none"] = "gelu"

    def adapts(self, name: str) -> bool:
        """Return True if the projection `name`, or "mlp", has an adapter."""
        return self.lora_rank > 0 and (self.lora_mlp if name == "mlp" else name in self.lora_targets)

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation between the two maps of an adapter."""
        return F.gelu(x, approximate="tanh") if self.lora_activation == "gelu" else x


class AdaptedLinear(nn.Linear):
    """Linear layer without bias, plus its adapter."""

    def __init__(self, inputs: int, outputs: int, lora: LoraConfig):
        super().__init__(inputs, outputs, bias=False)
        self.lora = lora
        self.lora_A, self.lora_B = _pair(inputs, outputs, lora)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora_B(self.lora.activate(self.lora_A(x)))


class Mlp(nn.Module):
    """Linear, GELU, Linear; the adapter reads the output and is added to it."""

    def __init__(self, width: int, hidden: int, lora: LoraConfig):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.lora = lora if lora.adapts("mlp") else None
        if self.lora is not None:
            self.lora_A, self.lora_B = _pair(width, width, lora)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))
        return y if self.lora is None else y + self.lora_B(self.lora.activate(self.lora_A(y)))


def projection(name: str, inputs: int, outputs: int, lora: LoraConfig) -> nn.Linear:
    """Return an attention projection, with an adapter if `lora` asks for one."""
    return AdaptedLinear(inputs, outputs, lora) if lora.adapts(name) else nn.Linear(inputs, outputs, bias=False)


def read_lora(folder: str | Path, base_hash: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an adapter; return the transformer's `lora_...` settings and the tensors under its parameter names.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the adapter was trained on weights with a hash other than `base_hash`, is of an unsupported kind, or holds
        tensors of the model itself.
    """
    settings = json.loads((Path(folder) / _CONFIG).read_text("utf-8"))
    if not isinstance(settings, dict) or not all(type(settings.get(key)) is kind for key, kind in _KEYS.items()):
        raise ValueError(f"{folder}: {_CONFIG} lacks one of {', '.join(_KEYS)}, or has it with another type")
    trained_on = settings["base_model_hash"]
    if trained_on != base_hash:
        raise ValueError(f"{folder}: was trained on the weights {trained_on}, but these are {base_hash}")
    modules = settings["target_modules"]
    if settings["lora_alpha"] != settings["r"] or not {*modules} <= {*_MODULES, "mlp"}:
        raise ValueError(
            f"{folder}: target_modules must be among {', '.join(_MODULES)} and mlp, and lora_alpha must equal r"
        )
    if other := [key for key, value in settings.items() if value and not _is_understood(key, value)]:
        raise ValueError(f"{folder}: {other[0]} changes what the adapter computes and is not supported")
    known = {
        "lora_rank": settings["r"],
        "lora_targets": tuple(_MODULES[module] for module in modules if module != "mlp"),
        "lora_mlp": "mlp" in modules,
        "lora_activation": settings.get("activation", "none"),
    }
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(Path(folder) / _WEIGHTS).items()}
    if base := [name for name in tensors if not _ADAPTER.search(name)]:
        raise ValueError(f"{folder}: {base[0]} is no tensor of an adapter; weights of the model are not replaced")
    return known, tensors


def _is_understood(key: str, value: Any) -> bool:
    """Tell whether a setting of PEFT is one that we follow, has the value that we assume, or matters to training alone."""
    return key in _KEYS or key in _IRRELEVANT or key.startswith("_") or value == _ASSUMED.get(key)


def _pair(inputs: int, outputs: int, lora: LoraConfig) -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(inputs, lora.lora_rank, bias=False), nn.Linear(lora.lora_rank, outputs, bias=False)

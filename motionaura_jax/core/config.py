"""Conversion of config files and `--config.a.b=value` flags to frozen dataclasses; no other module sees ml_collections.

A config file defines `get_config(variant) -> ml_collections.ConfigDict` with only the values that differ from the
dataclass defaults. `build` converts it strictly: a mistyped key fails, and the error suggests the nearest valid name.
"""

import contextlib
import copy
import dataclasses
import importlib.util
import json
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from motionaura_jax.core.errors import UserError, nearest, shown
from motionaura_jax.core.files import expanded, parse_json, read_json

T = TypeVar("T")
PREFIX = "--config."


def compose(
    base: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]], variant: str
) -> ml_collections.ConfigDict:
    """Merge the presets named in `variant` ("tiny,causal") over `base`, left to right.

    Presets map dotted keys ("model.channels") to values.

    Raises:
      UserError: a preset is unknown.
    """
    merged: dict[str, Any] = {}
    for key, value in base.items():
        _assign(merged, key, value)
    for name in filter(None, variant.split(",")):
        if name not in presets:
            raise UserError(f"unknown preset {name!r}{nearest(name, presets)}")
        for key, value in presets[name].items():
            _assign(merged, key, value)
    return ml_collections.ConfigDict(merged)


def read(location: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Load a config, and apply `--config.a.b=value` strings to it.

    Args:
      location: "NAME:VARIANT" of a config that comes with the package ("tokenizer:tiny"), "FILE.py:VARIANT", or a saved
        "config.json". File names may hold colons.

    Raises:
      UserError: the file is missing or not a config, a preset is unknown, or an override has no value.
    """
    return override(_read_file(location), overrides)


def override(values: Mapping[str, Any], flags: Sequence[str], prefix: str = PREFIX) -> dict[str, Any]:
    """Return `values` with strings such as `--config.a.b=value` applied.

    Raises:
      UserError: a flag has no value, or sets a key below a plain value.
    """
    changed = copy.deepcopy(dict(values))
    for flag in flags:
        key, separator, value = flag.removeprefix(prefix).partition("=")
        if not separator or not key:
            raise UserError(f"{shown(flag)}: write it as {prefix}KEY=VALUE")
        _assign(changed, key, value)
    return changed


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Convert nested mappings to the frozen dataclass `cls`, checking every key and type.

    Strings, as the command line gives them, are parsed unless the field is a string. Lists become tuples.

    Raises:
      UserError: a key is unknown (suggests the nearest name) or missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{where}.{shown(key)}: no such key{nearest(key, fields)}")
        arguments[key] = _convert(hints[key], value, f"{where}.{key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise UserError(f"{where}.{name}: this key has no default; {_how_to_set(where, name)}")
    try:
        return cls(**arguments)
    except (ValueError, UserError) as error:
        raise UserError(_keyed(str(error), cls.__name__, where)) from None


def _how_to_set(where: str, name: str) -> str:
    return f"add it to {where}" if where.endswith("]") else f"set --{where}.{name}=VALUE"


def to_dict(config: Any) -> dict[str, Any]:
    """Convert the dataclass to plain JSON values; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List "key: old -> new" for each dotted key in which two plain configs differ."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{key}: {shown(before.get(key))} -> {shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _read_file(location: str) -> dict[str, Any]:
    path, variant = _find(location)
    if path.suffix == ".json":
        if variant:
            raise UserError(f"{location}: a saved config takes no presets; set its keys with --config.KEY=VALUE")
        return read_json(path, remedy="name a config.json that train has saved")
    if path.suffix != ".py":
        raise UserError(f"{path}: a config is a .py file (FILE.py:VARIANT) or a saved config.json")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return (module.get_config(variant) if variant else module.get_config()).to_dict()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(f"{path}: this config file failed: {type(error).__name__}: {error}") from error


def _find(location: str) -> tuple[pathlib.Path, str]:
    """Split a location into a file and a variant; a colon may also belong to the name of the file.

    A file is relative to the working directory, or to the folder that holds the package's `configs/`.
    """
    home = _home()
    known = {path.stem: path for path in home.glob("configs/[a-z]*.py")}
    name, _, variant = location.rpartition(":")
    splits = [(location, ""), (name, variant)] if name else [(location, "")]
    for written, presets in splits:
        if written in known:
            return known[written], presets
        path = expanded(written)
        for place in (path, home / path):
            if place.is_file():
                return place, presets
    name = location if "/" in variant else splits[-1][0]  # the colon is part of a folder
    if re.fullmatch(r"\w+", name):
        raise UserError(f"{name}: no config has this name{nearest(name, known)}")
    raise UserError(f"{name}: no such config file{nearest(name, {f'configs/{path.name}' for path in known.values()})}")


def _home() -> pathlib.Path:
    """Return the folder with `configs/`: the package if it was installed from a wheel, else the checkout."""
    package = pathlib.Path(__file__).parents[1]
    return package if (package / "configs").is_dir() else package.parent


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"config.{shown(dotted)}: {parent!r} holds a value, not further keys")
        values = child
    values[last] = value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keyed(message: str, name: str, where: str) -> str:
    """Put the key `where` into a message of the dataclass `name`, which calls its fields NAME.FIELD or by their key."""
    if message.startswith(f"{name}."):
        return where + message.removeprefix(name)
    return message if message.startswith("config.") else f"{where}: {message}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against the annotation `hint`; parse command-line strings."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "None":
            return None
        (inner,) = [a for a in arguments if a is not type(None)]
        return _convert(inner, value, where)
    if origin is typing.Literal:
        choices = {str(choice): choice for choice in arguments}
        if str(value) not in choices:
            raise UserError(f"{where}={shown(value)}: expected one of {', '.join(choices)}")
        return choices[str(value)]
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if not isinstance(value, Mapping):
            raise UserError(
                f"{where}={shown(value)}: this is a group of keys, e.g. {where}.{dataclasses.fields(hint)[0].name}"
            )
        return build(hint, value, where)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, where)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = _parse_list(value, where)
    if not isinstance(value, (list, tuple)):
        value = [value]
    return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value) if item != "")


def _parse_list(text: str, where: str) -> list[Any]:
    """Parse a list from the command line: JSON, JSON with parentheses, or comma-separated values."""
    if text[:1] not in ("[", "("):
        return text.split(",")
    for written in (text, text.replace("(", "[").replace(")", "]")):  # first as written: strings may hold parentheses
        with contextlib.suppress(ValueError):
            return parse_json(written)
    raise UserError(f"{where}={shown(text)}: expected a list such as 1,2,3")


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    fault = UserError(f"{where}={shown(value)}: expected {hint.__name__}, not {type(value).__name__}")
    if hint is bool:
        if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
            return value.lower() in ("true", "1")
        if isinstance(value, bool):
            return value
        raise fault
    if hint in (int, float) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            return hint(value) if hint is float or isinstance(value, str) or value == int(value) else _raise(fault)
        except (ValueError, OverflowError):
            raise fault from None
    if hint is str and isinstance(value, str):
        return value
    raise fault


def _raise(error: Exception) -> Any:
    raise error

"""Seeded mutations of files: of any bytes, and of JSON, tables and safetensors with their structure kept readable."""

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

MAX_BYTES = 1 << 18
"""Largest mutated file; longer ones are cut."""

_EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\N{BOM}",
    "\x1b[31mred",
    "e\u0301",
    "a" * 300,
    "../" * 9 + "etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "~nobody/x",
    "~",
    ".",
    "C:\\x",
    "http://example.org/x.mp4",
    "someone/model",
    "nan",
    "1" * 5000,
    "%s%n{0}",
    "None",
    "line\nline\r\nline\u2028line",
)
_NUMBERS = (0, -1, 1, 2, 7, 1000, 10**6, 10**9, 2**31, 2**63, 10**12, 10**30, -(10**30), 0.5, 1e300, 1e-300, -0.0)
_VALUES = (None, True, False, [], {}, [1], [None], [[]], {"": None}, {"a": {"b": 3}}, *_NUMBERS, *_TEXTS)
# Content that `json.dumps` does not write, put in place of a value.
_RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "0x10", "1" * 5000, "'a'", '"\\ud83d"', '"\\u0000"', "[" * 70 + "]" * 70,
        "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "truE", "", ",")  # fmt: skip
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "C64", "I64", "I8", "U64", "BOOL", "X", 3)
_SHAPES = ([], [0], [1], [2**31], [2**63], [2**32, 2**32], [-1], [1] * 70, [0, 2**62], "3", [1.5])
_HOLE = "\N{WHITE SQUARE}hole"


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Apply one to eight small edits to any file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        rng.choice(_EDITS)(changed, rng)
    return bytes(changed[:MAX_BYTES])


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Change the encoding of a text, its line ends, or a few characters that tables and lists of texts give a meaning."""
    lines = data.decode("utf-8").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(lines))
        edit = rng.randrange(6)
        if edit == 0:
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif edit == 1:
            lines[place] = ""
        elif edit == 2:
            lines[place] = (lines[place] * rng.choice((2, 50, 3000)))[:MAX_BYTES]
        else:
            at = rng.randint(0, len(lines[place]))
            end = at + rng.choice((0, 0, 1, 3))
            piece = rng.choice(('"', '""', ",", ",,", "\0", "\r", "\t", ";", "\\", "'", *_TEXTS))
            lines[place] = lines[place][:at] + piece + lines[place][end:]
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\u2028")).join(lines)
    encoding = rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7"))
    handler = "surrogatepass" if encoding.startswith("utf-8") else "replace"
    return text.encode(encoding, handler)[:MAX_BYTES]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change the values, keys, types and nesting of a JSON document."""
    tree = json.loads(data)
    raw = rng.choice(_RAW) if rng.random() < 0.2 else None
    edits = 1 if raw is not None else rng.choice((1, 1, 2, 3))
    for _ in range(edits):
        tree = _change(tree, rng, _HOLE if raw is not None else None)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    if raw is not None:
        text = text.replace(json.dumps(_HOLE), raw).replace(f'"{_HOLE}"', raw)
    return text.encode("utf-8", "surrogatepass")


def mutate_json_lines(data: bytes, rng: random.Random) -> bytes:
    """Change one line of JSON lines as `mutate_json` does."""
    lines = data.split(b"\n")
    place = rng.choice([index for index, line in enumerate(lines) if line])
    lines[place] = mutate_json(lines[place], rng)
    return b"\n".join(lines)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file (names, dtypes, shapes, offsets, its length), or the number of its bytes."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for _ in range(rng.choice((1, 1, 2))):
        _change_header(header, rng)
    if rng.random() < 0.2:
        header = _change(header, rng)
    text = json.dumps(header).encode()
    text = rng.choice((text, text, text, text + b" " * 9, b"\n" + text, text[:-1]))
    sizes = (len(text),) * 8 + (len(text) + 1, len(text) - 1, *_EXTREMES)
    body = rng.choice((body, body, body, body, body[:-1], body + b"\0" * 8, b""))
    return struct.pack("<Q", rng.choice(sizes) % 2**64) + text + body


def any_of(*mutators: Mutator) -> Mutator:
    """Return a mutator that applies one of `mutators`, chosen with equal probability."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        """Apply one of the mutators."""
        return rng.choice(mutators)(data, rng)

    return mutate


def _place(data: Sequence[Any], rng: random.Random) -> int:
    """Return a position, half of the time near the start, where the headers are."""
    end = min(len(data), 256) if rng.random() < 0.5 else len(data)
    return rng.randrange(end) if end else 0


def _flip_bit(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_bytes(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    for index in range(start, min(len(data), start + rng.choice((1, 1, 2, 4, 16)))):
        data[index] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))


def _set_length(data: bytearray, rng: random.Random) -> None:
    """Write an extreme number over two to eight bytes, as a size, count or time stamp may be stored."""
    size, order = rng.choice((2, 4, 4, 8)), rng.choice(("big", "little"))
    start = _place(data, rng)
    number = (rng.choice(_EXTREMES) + rng.choice((0, 0, -1, 1))) % 2 ** (8 * size)
    data[start : start + size] = number.to_bytes(size, order)  # type: ignore[arg-type]


def _cut(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    del data[start : rng.choice((start + 1, start + 4, start + rng.randint(1, 64), len(data)))]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    data[start:start] = rng.choice((b"\0", b"\xff" * 4, rng.randbytes(rng.randint(1, 64)), b"\0" * 1024))


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    data[start:start] = data[start : start + rng.randint(1, 512)] * rng.choice((1, 1, 2, 8))


def _swap(data: bytearray, rng: random.Random) -> None:
    first, second, size = _place(data, rng), _place(data, rng), rng.choice((1, 4, 16, 64))
    first, second = sorted((first, second))
    one, other = bytes(data[first : first + size]), bytes(data[second : second + size])
    data[second : second + size] = one
    data[first : first + size] = other


def _blank(data: bytearray, rng: random.Random) -> None:
    start, size = _place(data, rng), rng.choice((4, 16, 64, 512))
    end = min(len(data), start + size)
    data[start:end] = bytes(end - start)


_EDITS = (_flip_bit, _flip_bit, _set_bytes, _set_bytes, _set_length, _set_length, _cut, _insert, _repeat, _swap, _blank)


def _change(tree: Any, rng: random.Random, value: Any = None) -> Any:
    """Return `tree` with one random place changed; `value`, if given, is put there."""
    places = list(_places(tree))
    path = rng.choice(places)
    if not path:
        return value if value is not None else _other(tree, rng)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    edit = rng.randrange(6)
    if value is not None or edit < 3:
        parent[key] = value if value is not None else _other(parent[key], rng)
    elif edit == 3:
        del parent[key]
    elif isinstance(parent, dict):
        name = rng.choice((*_TEXTS, *parent, "version", "parts"))
        parent[name] = parent.pop(key) if edit == 4 else copy.deepcopy(rng.choice(_VALUES))
    else:
        parent.extend([parent[key]] * rng.choice((1, 5, 2000)))
    return tree


def _other(value: Any, rng: random.Random) -> Any:
    """Return a value in place of another: often a number for a number, which passes the checks of types.

    It is a copy, because later edits change it in place.
    """
    if isinstance(value, (int, float)) and rng.random() < 0.6:
        return rng.choice(_NUMBERS)
    return _wrapped(value, rng) if rng.random() < 0.2 else copy.deepcopy(rng.choice(_VALUES))


def _wrapped(value: Any, rng: random.Random) -> Any:
    """Return `value` as another type: text, a list or object around it, or nested deeply."""
    deep = value
    for _ in range(rng.choice((2, 70, 900))):
        deep = rng.choice(([deep], {"a": deep}))
    return rng.choice((str(value), [value], {"a": value}, [value] * 3, deep))


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield the path of every value of a JSON document, its root included."""
    yield path
    if len(path) < 20 and isinstance(tree, (dict, list)):
        keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 50))
        for key in keys:
            yield from _places(tree[key], (*path, key))


def _change_header(header: dict[str, Any], rng: random.Random) -> None:
    """Change one tensor in the header of a safetensors file."""
    names = [name for name, entry in header.items() if isinstance(entry, dict) and "data_offsets" in entry]
    if not names:
        return
    name = rng.choice(names)
    entry, other = header[name], header[rng.choice(names)]
    edit = rng.randrange(7)
    if edit == 0:
        entry["dtype"] = rng.choice(
            ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "C64", "I64", "I8", "U64", "BOOL", "X", 3)
        )
    elif edit == 1:
        entry["shape"] = copy.deepcopy(rng.choice(_SHAPES))
    elif edit == 2:
        entry["data_offsets"] = rng.choice(
            ([0, 0], [8, 0], [0, 2**63], [-1, 8], [0, 2**64], [1], list(other["data_offsets"]))
        )
    elif edit == 3:
        header[name] = dict(other)
    elif edit == 4:
        header[rng.choice(_TEXTS)] = header.pop(name)
    elif edit == 5:
        header["__metadata__"] = rng.choice(({}, {"format": "x"}, {"a": 3}, [], {"a": "b" * 100_000}))
    else:
        shape = entry["shape"] if isinstance(entry["shape"], list) else [1]
        entry["shape"] = rng.choice((shape[::-1], [*shape, 1], shape[1:], [_count(shape)]))


def _count(shape: Sequence[Any]) -> int:
    """Return the number of elements of a shape, which may hold values of any kind."""
    count = 1
    for size in shape:
        count *= size if isinstance(size, int) else 1
    return count

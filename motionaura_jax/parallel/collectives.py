"""The communication and the kernels of a compiled program, read from its text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_OPCODE = re.compile(r"= (?:\(.*?\)|\S+) ([a-z][a-z\-]*)\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")

_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id")
_WORK = ("custom-call", "fft", "while", "conditional", "call")
_ENDED = re.compile(r"-done\((%?[\w.\-]+)\)")
_CONTROL = ("while", "conditional", "call", "async-start")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      shapes: of its results on each device.
      bytes: of its results on each device, each time that it runs.
      times: how often it runs in one call of the program; a loop of unknown length counts once.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    times: int


def collectives(program: str) -> list[Collective]:
    """Find the collectives in the text of a compiled program, `jax.stages.Compiled.as_text()`."""
    bodies, entry = _computations(program)
    return list(_walk(bodies, entry, 1, set()))


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
    """Sum the bytes on each device per call of the program, by kind."""
    return {kind: sum(one.bytes * one.times for one in found if one.kind == kind) for kind in KINDS}


def runs(program: str) -> collections.Counter[str]:
    """Count the kernels that one call of a compiled program runs, by opcode; a fusion is one kernel.

    On a GPU, the sum is the number of launches. A loop of unknown length counts once.
    """
    total = collections.Counter[str]()
    for lines, times in _scopes(*_computations(program), 1):
        for opcode in map(_opcode, lines):
            if opcode and opcode not in (*_FREE, *_CONTROL) and not opcode.endswith(("-done", "-update")):
                total[opcode] += times
    return total


def exposed_by_kind(program: str) -> dict[str, int]:
    """Sum the bytes, as `bytes_by_kind`, of the transfers of a GPU program that no work hides.

    Work is a matrix product, a convolution, attention or a Fourier transform between start and end of the transfer.
    """
    total = dict.fromkeys(KINDS, 0)
    for lines, times in _scopes(*_computations(program), 1):
        work, started = 0, dict[str, tuple[Collective, int]]()
        for line in lines:
            opcode, name = _opcode(line), line.split(" = ")[0].split()[-1] if " = " in line else ""
            if found := _COLLECTIVE.search(line):
                one = _read(found[1], found[2], bool(found[3]), times)
                started[name] = one, work
                total[one.kind] += 0 if found[3] else one.bytes * times  # it is one instruction, and everything waits
            if (ended := _ENDED.search(line)) and ended[1] in started:
                one, before = started.pop(ended[1])
                total[one.kind] += one.bytes * times * (work == before)
            work += opcode in _WORK
    return total


def _scopes(bodies: Mapping[str, list[str]], name: str, times: int) -> Iterator[tuple[list[str], int]]:
    """Yield the lines of each computation that is no part of a kernel, and how often they run."""
    lines = bodies.get(name, [])
    yield lines, times
    for line in lines:
        if (opcode := _opcode(line)) in _CONTROL:
            trips = _trips(bodies, line) if opcode == "while" else 1
            for called in _called(line):
                yield from _scopes(bodies, called, times * trips)


def _opcode(line: str) -> str:
    return found[1] if (found := _OPCODE.search(line)) else ""


def _called(line: str) -> list[str]:
    branches = [part.strip().lstrip("%") for group in _BRANCHES.findall(line) for part in group.split(",")]
    return [*_CALLED.findall(line), *branches]


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            bodies[name] = []
            entry = name if header[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _walk(
    bodies: Mapping[str, list[str]], name: str, times: int, seen: set[str], fused: bool = False
) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        if found := _COLLECTIVE.search(line):
            # A TPU fuses one collective with several computations, and each names it again.
            channel = _CHANNEL.search(line) if fused else None
            if channel is None or channel[1] not in seen:
                yield _read(found[1], found[2], bool(found[3]), times)
            if channel:
                seen.add(channel[1])
            continue
        trips = _trips(bodies, line) if " while(" in line else 1
        for called in _called(line):
            yield from _walk(bodies, called, times * trips, seen, fused or " fusion(" in line)


def _trips(bodies: Mapping[str, list[str]], loop: str) -> int:
    """Return the trip count of a loop: its annotation or, on a TPU, the only constant in its condition."""
    if known := _TRIPS.search(loop):
        return int(known[1])
    condition = _CONDITION.search(loop)
    bounds = {found for line in bodies.get(condition[1] if condition else "", ()) for found in _BOUND.findall(line)}
    return int(bounds.pop()) if len(bounds) == 1 else 1


def _read(result: str, kind: str, started: bool, times: int) -> Collective:
    arrays = _ARRAY.findall(result)
    if started and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # the operands come first
    shapes = tuple(tuple(int(size) for size in dims.split(",") if size) for _, dims in arrays)
    widths = (max(int(re.sub(r"\D", "", dtype) or 8) // 8, 1) for dtype, _ in arrays)
    total = sum(width * math.prod(shape) for width, shape in zip(widths, shapes, strict=True))
    return Collective(kind, shapes, total, times)

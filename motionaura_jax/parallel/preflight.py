"""Checks before several processes train together: one log line each; errors name the machine that differs."""

import contextlib
import functools
import hashlib
import json
import logging
import pathlib
import platform
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from motionaura_jax import __version__
from motionaura_jax.core.errors import UserError, shown
from motionaura_jax.parallel import distributed

logger = logging.getLogger(__name__)

CLOCK_LIMIT = 30.0  # seconds; beyond, logs of different machines cannot be compared
SIGHT_LIMIT = 10.0  # seconds for a new file to appear on the other machines; network disks are slow
REDUCE_LIMIT = 120.0  # seconds for the first sums over all devices, compilation and connection included
_ROOM = 1 << 20  # bytes written to the workdir; a full disk still accepts an empty file
_ELEMENTS = {"cpu": 1 << 20}  # float32 numbers summed over all devices
_REPEATS = 3


def check(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Check devices, versions, clocks, config, workdir and a sum over all devices; log a summary.

    A process that runs alone checks nothing.

    Raises:
      UserError: a process differs from process 0, does not see its workdir, or gets a wrong sum.
    """
    if distributed.process_count() == 1:
        return
    distributed.barrier("clocks")
    facts = distributed.gather("facts", {"clock": time.time(), **_facts()})
    logger.info("preflight: %s", ", ".join(distributed.names()))
    for line in (compare(facts, distributed.names()), check_config(config), check_workdir(workdir), check_sum()):
        logger.info("preflight: %s", line)


def _facts() -> dict[str, Any]:
    import jax

    devices = Counter(device.device_kind for device in jax.local_devices())
    return {
        "devices": " and ".join(f"{count} x {kind}" for kind, count in sorted(devices.items())),
        "motionaura_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def compare(facts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Compare the facts of all processes with those of process 0; return the summary line.

    Raises:
      UserError: names the process that differs and the fact.
    """
    clocks = [fact["clock"] for fact in facts]
    for name, fact in zip(names, facts, strict=True):
        for key, value in facts[0].items():
            if key != "clock" and fact[key] != value:
                raise UserError(
                    f"{name} has {key} {fact[key]}, {names[0]} has {value}; give all machines the same hardware and "
                    f"installation"
                )
        skew = fact["clock"] - clocks[0]
        if abs(skew) > CLOCK_LIMIT:
            raise UserError(f"the clock of {name} is off by {skew:.0f} s from that of {names[0]}; set it by NTP")
    first, spread = facts[0], max(clocks) - min(clocks)
    versions = ", ".join(f"{key} {first[key]}" for key in ("motionaura_jax", "jax", "python"))
    return f"each has {first['devices']}, {versions}; clocks within {spread:.3f} s"


def check_config(config: Mapping[str, Any]) -> str:
    """Compare the resolved config with that of process 0; return the summary line.

    Raises:
      UserError: names the process and the keys that differ.
    """
    ours = dict(_flat(json.loads(json.dumps(config))))
    theirs = dict(distributed.broadcast("config", list(ours.items())))
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    for name, found in zip(distributed.names(), distributed.gather("other keys", keys), strict=True):
        if found:
            raise UserError(
                f"{name} has another config than {distributed.names()[0]} ({shown(', '.join(found))}); start all with "
                f"the same --config and the same files"
            )
    digest = hashlib.sha256(json.dumps(sorted(ours.items())).encode()).hexdigest()
    return f"same config everywhere, hash {digest[:12]}"


def _flat(tree: Any, key: str = "config") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flat(value, f"{key}.{name}")
    else:
        yield key, tree


def check_workdir(workdir: pathlib.Path) -> str:
    """Let process 0 write a file that all others must see; return the summary line.

    Raises:
      UserError: process 0 cannot write, or a process does not see the file.
    """
    mark = workdir / f".seen-by-all-{distributed.broadcast('mark', uuid.uuid4().hex)}"
    if distributed.is_primary():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            mark.write_bytes(bytes(_ROOM))
        except OSError as error:
            with contextlib.suppress(OSError):
                mark.unlink()
            raise UserError(
                f"{workdir}: cannot be used as a workdir ({error.strerror}); choose another folder"
            ) from error
    distributed.barrier("mark is written")
    until = time.monotonic() + SIGHT_LIMIT
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    answers = distributed.gather("mark is seen", seen)
    if distributed.is_primary():
        mark.unlink(missing_ok=True)
    for name, answer in zip(distributed.names(), answers, strict=True):
        if not answer:
            raise UserError(
                f"{workdir}: {name} does not see what {distributed.names()[0]} writes there; choose a workdir on a disk "
                f"that all machines share, under the same path"
            )
    return f"workdir {workdir} is writable and shared"


def check_sum() -> str:
    """Sum known numbers over all devices and measure the bandwidth; return the summary line.

    A sum that takes longer than `REDUCE_LIMIT` ends all processes.

    Raises:
      UserError: names the process that got a wrong sum.
    """
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    count = jax.device_count()
    size = _ELEMENTS.get(jax.devices()[0].platform, 1 << 24)
    mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))
    total = jax.jit(
        jax.shard_map(
            functools.partial(jax.lax.psum, axis_name="all"),
            mesh=mesh,
            in_specs=PartitionSpec("all"),
            out_specs=PartitionSpec(),
        )
    )
    numbers = jax.make_array_from_callback(
        (count, size),
        NamedSharding(mesh, PartitionSpec("all")),
        lambda index: np.full((1, size), (index or (slice(None),))[0].indices(count)[0] + 1, np.float32),
    )
    remedy = "check the firewall and the network interfaces (NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO)"
    with distributed.deadline(REDUCE_LIMIT, f"a sum over all devices does not come back; {remedy}"):
        right = bool(np.all(np.asarray(total(numbers).addressable_data(0)) == count * (count + 1) / 2))
        seconds = min(_timed(lambda: jax.block_until_ready(total(numbers))) for _ in range(_REPEATS))
    for name, answer in zip(distributed.names(), distributed.gather("sum is right", right), strict=True):
        if not answer:
            raise UserError(f"{name} got a wrong sum over all devices; take that machine out, its hardware is faulty")
    sent = 2 * (count - 1) / count * size * 4  # bytes that each device sends in a ring, the optimum
    return f"all-reduce of {size * 4 / 1e6:.0f} MB over {count} devices is right, {sent / seconds / 1e9:.2f} GB/s"


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

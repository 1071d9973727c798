"""Readers return or raise `UserError` in one line for any file: a few mutations of each, and every escape ever kept."""

import json
import random
from pathlib import Path

import pytest

from motionaura_jax.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tests.fuzz import campaign, media, misbehaving, mutators, worker
from tests.fuzz.readers import GROUPS, READERS, Case, make_case

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))
ENDLESS = ("hang", "crash", "memory")  # these would take this process with them
_EACH = 4  # mutations per reader in the fast test


@pytest.fixture(autouse=True)
def watched() -> None:
    worker.watch()


def test_every_seed_is_read(tmp_path: Path) -> None:
    """Check that mutations start from files that readers take."""
    refused = {}
    for reader in READERS.values():
        for number, (name, files) in enumerate(reader.valid.items()):
            case = Case(reader=reader.name, seed=name, data=next(iter(files.values())))
            outcome = worker.attempt(case, tmp_path / f"{reader.name}-{number}")
            if outcome.escaped or (outcome.kind != "read" and not name.startswith(media.DISGUISED)):
                refused[reader.name, name] = outcome.detail
    assert refused == {}


def test_media_seeds_have_every_suffix() -> None:
    suffixes = {Path(name).suffix for name in READERS["media"].valid}
    assert suffixes == {*VIDEO_SUFFIXES, *IMAGE_SUFFIXES}


@pytest.mark.parametrize("name", READERS)
def test_a_few_mutations_of_each_reader(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    for number in range(_EACH * (10 if name == "media" else 1)):
        case = make_case(number, [reader.group], [reader])
        outcome = worker.attempt(case, tmp_path / str(number))
        assert not outcome.escaped, f"{number}: {outcome.kind} {outcome.detail}"


def found(path: Path) -> str:
    """Return what a kept case did when it was found."""
    return str(json.loads(path.read_text())["found"])


@pytest.mark.parametrize(
    "path", [path for path in CASES if not found(path).startswith(ENDLESS)], ids=lambda path: path.stem
)
def test_kept_escapes(path: Path, tmp_path: Path) -> None:
    outcome = worker.attempt(campaign.load(path), tmp_path / "case")
    assert not outcome.escaped, f"{outcome.kind} {outcome.detail}"


@pytest.mark.slow
def test_kept_escapes_that_ended_a_process() -> None:
    paths = [path for path in CASES if found(path).startswith(ENDLESS)]
    assert [(path.stem, outcome.kind) for path, outcome in campaign.replay(paths) if outcome.escaped] == []


def test_kept_escapes_are_small() -> None:
    assert [path.name for path in CASES if path.stat().st_size > 4096] == []


def test_the_same_number_makes_the_same_mutation() -> None:
    first, second = ([make_case(number, GROUPS) for number in range(50)] for _ in range(2))
    assert first == second
    assert len({case.data for case in first}) > 40


def test_mutations_reach_past_the_syntax() -> None:
    """Check that mutated JSON mostly remains JSON."""
    parsed = 0
    for number in range(200):
        data = mutators.mutate_json(b'{"a": {"b": [1, 2, {"c": "d"}]}, "e": null}', random.Random(number))
        try:
            json.loads(data)
            parsed += 1
        except (ValueError, RecursionError):
            pass
    assert parsed > 120


@pytest.mark.slow
def test_every_kind_of_escape_is_noticed() -> None:
    """Check crashes, hangs, memory, exits, programs and unclear messages; the lane works on after each."""
    with campaign.Lane(seconds=6, serve=misbehaving.serve) as lane:
        kinds = {
            name: lane.ask(misbehaving.case(name, data)).kind
            for name, data in (
                ("crash", b""),
                ("exit", b""),
                ("hang", b""),
                ("allocate", b""),
                ("overflow", b""),
                ("start_program", b""),
                ("refuse", b"two\nlines"),
                ("return", b""),
            )
        }
        assert lane.ask(misbehaving.case("refuse", b"a: fault; remedy")).kind == "refused"
    assert kinds == {
        "crash": "crash -11",
        "exit": "SystemExit",
        "hang": "hang",
        "allocate": "memory",
        "overflow": "MemoryError",
        "start_program": "action",
        "refuse": "unprintable message",
        "return": "read",
    }


@pytest.mark.slow
def test_an_escape_is_shortened_and_kept(tmp_path: Path) -> None:
    misbehaving.register()
    with campaign.Lane(serve=misbehaving.serve) as lane:
        long = misbehaving.case("refuse", b"a long text\nof two lines")
        outcome = lane.ask(long)
        short = campaign.shortened(lane, long, outcome)
        assert len(short.data) < len(long.data) and lane.ask(short).signature == outcome.signature
    campaign.save(tmp_path / "escape.json", short, outcome)
    assert campaign.load(tmp_path / "escape.json") == short


@pytest.mark.slow
def test_a_minute_of_mutations(tmp_path: Path) -> None:
    tally = campaign.run(seconds=60, groups=GROUPS, folder=tmp_path / "escapes", seed=0)
    assert tally.escapes == {}
    assert tally.total > 500

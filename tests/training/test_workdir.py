"""The lock of a workdir: it keeps a second run out, and the OS releases it however the process ends.

Below: workdirs that come from elsewhere, with links, pipes and files of another form.
"""

import json
import os
import time

import pytest

from motionaura_jax.core import config, files
from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import distributed
from motionaura_jax.pipelines import acts
from motionaura_jax.training import data, loop, workdir
from motionaura_jax.training.monitoring import goodput, writers
from tests.processes import Forked
from tests.training.toy import ToyRecipe, ToySystem


@pytest.fixture
def holder(root, tmp_path, tmp_path_factory):
    """Start a process that holds the lock of `tmp_path`."""
    logs = tmp_path_factory.mktemp("logs")
    out, err = logs / "out", logs / "err"
    process = Forked("tests.training.holder", tmp_path, root=root, out=out, err=err)
    until = time.monotonic() + 60
    while not (out.exists() and out.read_text() == "held\n"):
        assert process.poll() is None and time.monotonic() < until, err.read_text()
        time.sleep(0.01)
    yield process
    process.kill()


def test_a_second_run_is_told_who_holds_it_until_that_is_killed(holder, tmp_path):
    with pytest.raises(UserError, match=rf"process {holder.pid} on \S+ trains in it; .* choose another folder$"):
        loop.fit(ToySystem(config.build(ToyRecipe, {"system": "toy"})), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [workdir.LOCK]
    holder.kill()
    holder.wait(60)
    with workdir.lock(tmp_path):
        pass


def test_a_run_of_another_machine_gets_time_to_turn_out_to_be_gone(holder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(distributed, "host_name", lambda: "elsewhere")
    with pytest.raises(UserError, match=f"if it is gone for good, delete {tmp_path}/lock"):
        workdir.lock(tmp_path, lease=0.1).__enter__()
    monkeypatch.setattr(workdir.time, "sleep", lambda _: (holder.kill(), holder.wait(60)))
    with workdir.lock(tmp_path, lease=60):
        assert (tmp_path / workdir.LOCK).read_text().endswith(" on elsewhere")
    assert "waiting up to 60 s for its end" in caplog.text


def test_of_several_processes_only_the_first_holds_it(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    holds = (tmp_path / workdir.LOCK).read_text()
    with workdir.lock(tmp_path):
        assert (tmp_path / workdir.LOCK).read_text() == holds


def test_a_file_system_without_locks_keeps_nobody_out(holder, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(workdir.errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with workdir.lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / workdir.LOCK).read_text()


# ---------------------------------------------------------------- Workdirs from elsewhere
WRITTEN = ("lock", "config.json", "metrics.jsonl", "goodput.json", "rejected.jsonl", "rejected-1.jsonl", "samples")
WRITTEN += (
    "tensorboard",
    "profile",
    "watchdog",
    "non_finite",
    "scenes",
    "checkpoints",
    "scenes/train",
    "samples/0000100",
)
WRITTEN += ("scenes/train/videos", "scenes/train/scenes.json", "tensorboard/events", "watchdog/stacks-0.txt")
WRITTEN += ("checkpoints/5", "checkpoints/damaged-5")


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "pipe"])
def test_a_run_follows_no_link_and_waits_for_no_pipe(tmp_path, name, kind):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / name).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "scenes.json").write_text("precious")
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(elsewhere / {"file": "scenes.json", "folder": "", "nothing": "new"}[kind])
    fault = "is a pipe or device, not a file" if kind == "pipe" else "is a link to .*elsewhere.*; remove it"
    with pytest.raises(UserError, match=f"{name}: {fault}"):
        loop.fit(ToySystem(config.build(ToyRecipe, {"system": "toy"})), run)
    assert contents(elsewhere) == {"scenes.json": "precious"}


def test_a_folder_of_checkpoints_elsewhere_holds_no_links_either(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "5").symlink_to(tmp_path / "kept")
    recipe = config.build(ToyRecipe, {"system": "toy", "checkpoint": {"folder": str(tmp_path / "steps")}})
    with pytest.raises(UserError, match="steps/5: is a link"):
        workdir.open_workdir(tmp_path / "run", recipe)


def test_the_workdir_itself_and_what_others_put_there_may_be_links(tmp_path):
    (tmp_path / "true").mkdir()
    (tmp_path / "true" / "data").symlink_to(tmp_path)
    (tmp_path / "run").symlink_to(tmp_path / "true")
    with workdir.lock(tmp_path / "run"):
        assert (tmp_path / "true" / "lock").exists()


def test_a_file_that_the_lock_shares_by_a_hard_link_keeps_its_content(tmp_path):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_bytes(b"\xffmany\nlines\n")
    run.mkdir()
    os.link(precious, run / "lock")
    with pytest.raises(UserError, match="lock: is not the lock of a run"):
        workdir.lock(run).__enter__()
    assert precious.read_bytes() == b"\xffmany\nlines\n"


def test_scenes_behind_a_link_are_not_removed(tmp_path):
    (tmp_path / "elsewhere" / "train").mkdir(parents=True)
    (tmp_path / "elsewhere" / "train" / "scenes.json").write_text("precious")
    for run, link in (("a", "scenes"), ("b", "scenes/train")):
        (tmp_path / run / link).parent.mkdir(parents=True)
        (tmp_path / run / link).symlink_to(tmp_path / "elsewhere" / ("train" if "/" in link else ""))
        data.forget(tmp_path / run)
    assert contents(tmp_path / "elsewhere" / "train") == {"scenes.json": "precious"}


FORMS = [
    "[1]",
    "[" * 10**5,
    '{"a":' * 1000,
    "3",
    '"\\ud800"',
    "\0",
    "",
    '{"checkpoint": {"folder": 3}}',
    '{"data": [1]}',
]


@pytest.mark.parametrize("text", FORMS, ids=range(len(FORMS)))
def test_a_config_of_another_form_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    recipe = config.build(ToyRecipe, {"system": "toy"})
    try:
        workdir.open_workdir(tmp_path, recipe)  # an object: no checkpoint, so the run starts over
    except UserError as error:
        assert "config.json: is damaged (" in str(error) and "delete it to save the config again" in str(error)
        assert not text.startswith('{"checkpoint')
    else:
        assert files.read_json(tmp_path / "config.json", remedy="")["system"] == "toy"


@pytest.mark.parametrize(
    "text",
    [
        *FORMS,
        '{"seconds": 3, "steps_at_checkpoint": {}}',
        '{"seconds": {"steps": 1e999}, "steps_at_checkpoint": {}}',
        json.dumps({"seconds": dict.fromkeys(goodput.KINDS, 10**400), "steps_at_checkpoint": {}}),
        json.dumps({"seconds": dict.fromkeys(goodput.KINDS, -5), "steps_at_checkpoint": {}}),
        json.dumps({"seconds": dict.fromkeys(goodput.KINDS, 5), "steps_at_checkpoint": [1]}),
        json.dumps({"seconds": dict.fromkeys(goodput.KINDS, 5), "steps_at_checkpoint": {"a": 1}}),
    ],
    ids=range(len(FORMS) + 6),
)
def test_a_statistic_of_another_form_starts_over(tmp_path, text):
    (tmp_path / goodput.FILE).write_text(text)
    book = goodput.Goodput(tmp_path, now=lambda: 0.0)
    book.resume(0)
    assert set(book.shares().values()) == {0.0}
    (tmp_path / "seconds.json").write_text(text)
    watch = acts.Stopwatch(tmp_path / "seconds.json")
    with watch.stage("one"):
        pass
    assert 0 <= json.loads((tmp_path / "seconds.json").read_text())["one"] < 10


def test_damaged_metrics_are_left_out_and_no_good_line_is_lost(tmp_path, caplog):
    bad = ["[1]", '{"step": "x"}', "[" * 10**5, '{"loss": 1}', "\0", '{"step": -1}', "{"]
    good = [
        '{"step": 1, "loss": NaN}',
        '{"step": 2, "loss": null, "note": [1], "big": 1' + "0" * 400 + "}",
        '{"step": 3}',
    ]
    lines = [good[0], *bad[:4], good[1], *bad[4:6], good[2], bad[6]]
    (tmp_path / writers.FILE).write_bytes("\n".join(lines).encode() + b"\xff")
    rows = writers.read_metrics(tmp_path / writers.FILE)
    assert str(rows) == "[{'step': 1, 'loss': nan}, {'step': 2, 'loss': None}, {'step': 3}]"
    assert "metrics.jsonl: 6 damaged lines are left out" in caplog.text
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: is a folder, not a file; move it away"):
        writers.read_metrics(tmp_path / "folder")

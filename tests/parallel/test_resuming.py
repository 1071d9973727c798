"""Checkpoints of several processes: all resume from the same step, even if only one can or cannot read it."""

import json

import pytest

from tests.processes import Forked, free_port


@pytest.fixture(scope="module")
def found(root, tmp_path_factory):
    """Return the output of two processes, and their folder."""
    folder, address = tmp_path_factory.mktemp("resuming"), f"localhost:{free_port()}"
    out, err = ([folder / f"{index}.{name}" for index in range(2)] for name in ("out", "err"))
    processes = [
        Forked(
            "tests.parallel.resuming",
            *(address, index, folder),
            root=root,
            out=out[index],
            err=err[index],
            JAX_NUM_CPU_DEVICES="1",
        )
        for index in range(2)
    ]
    try:
        statuses = [process.wait(60) for process in processes]
    finally:
        [process.kill() for process in processes]
    assert statuses == [0, 0], [path.read_text()[-3000:] for path in err]
    return [json.loads(path.read_text().splitlines()[-1]) for path in out], folder  # Gloo also prints there


def test_a_new_workdir_opens_beside_the_checkpoints_of_one_that_is_lost(found):
    said, _ = found
    assert all(each["opened"] for each in said)


def test_a_step_that_one_process_cannot_read_is_put_aside_by_both(found):
    said, folder = found
    assert [each["step"] for each in said] == [0, 0]
    assert sorted(path.name for path in (folder / "bucket").iterdir()) == ["0", "damaged-1"]

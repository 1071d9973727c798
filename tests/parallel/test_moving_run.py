"""A run may move to other devices: it reads the same batches, and loses nothing of what it has learned."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

TOLERANCE = 1e-5


@pytest.mark.slow
def test_a_run_that_moves_between_meshes_equals_one_that_stays(root, tmp_path):
    """8, 4, 1 and again 8 devices, five steps on each, against twenty on one device: a batch in another order would show."""
    command = [sys.executable, "-m", "tests.parallel.moving_run", "text_to_video", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = json.loads(done.stdout)
    assert len(losses["staying"]) == 20
    np.testing.assert_allclose(losses["moving"], losses["staying"], rtol=TOLERANCE)

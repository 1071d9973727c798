"""A run can move to other devices: it reads the same batches and keeps its state."""

import numpy as np
import pytest

from tests import processes

TOLERANCE = 1e-5


@pytest.mark.slow
def test_a_run_that_moves_between_meshes_equals_one_that_stays(root, tmp_path):
    """Five steps each on 8, 4, 1 and again 8 devices equal twenty on one device; a reordered batch would show."""
    losses = processes.report("tests.parallel.moving_run", "text_to_video", tmp_path, root=root)
    assert len(losses["staying"]) == 20
    np.testing.assert_allclose(losses["moving"], losses["staying"], rtol=TOLERANCE)

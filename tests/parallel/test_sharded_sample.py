"""Eight devices produce the same videos and tokens as one."""

import pytest

from tests import processes


@pytest.mark.slow
def test_videos_and_tokens_do_not_depend_on_the_mesh(root, tmp_path):
    found = processes.report("tests.parallel.sharded_sample", tmp_path, root=root)
    assert found["videos"] == [3, 4, 16, 16, 3] and found["spread"] > 10 and found["tokens"] > 4
    assert not found["weights_whole"]
    assert found["difference"] <= 1 and found["other_tokens"] == 0

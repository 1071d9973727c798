"""Eight devices draw the videos and find the tokens that one device does."""

import json
import os
import subprocess
import sys


def test_videos_and_tokens_do_not_depend_on_the_mesh(root, tmp_path):
    command = [sys.executable, "-m", "tests.parallel.sharded_sample", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["videos"] == [3, 4, 16, 16, 3] and found["spread"] > 10 and found["tokens"] > 4
    assert not found["weights_whole"]
    assert found["difference"] <= 1 and found["other_tokens"] == 0

"""A process that holds the lock of a workdir until it is killed."""

import pathlib
import sys
import time

from motionaura_jax.training import workdir

if __name__ == "__main__":
    with workdir.lock(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(100)

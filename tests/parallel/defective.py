"""`motionaura train` with a simulated bug that hits process 0 once all have joined."""

import atexit
import sys
from unittest import mock

from motionaura_jax.core import config
from motionaura_jax.parallel import distributed
from tests.cluster import worker

_read = config.read


def read(*arguments):
    if distributed.is_primary():
        raise ZeroDivisionError("a defect")
    return _read(*arguments)


if __name__ == "__main__":
    with mock.patch.object(config, "read", read):
        try:
            sys.exit(worker.train.main())
        finally:
            atexit._run_exitfuncs()  # as an interpreter does at exit, unlike a fork

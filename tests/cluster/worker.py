"""`motionaura train` that knows the toy system too: one process of a run."""

import sys

from motionaura_jax import train
from motionaura_jax.systems import base

base.SYSTEMS["toy"] = "tests.training.toy:ToySystem"

if __name__ == "__main__":
    sys.exit(train.main())

"""`python -m motionaura_jax COMMAND`: the console script `motionaura` without an installation."""

import sys

from motionaura_jax.core.cli import main

sys.exit(main())

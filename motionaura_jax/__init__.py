"""Video generators in JAX: train, sample, evaluate, export.  docs/architecture.md is the map."""

import os
import sys

if getattr(sys, "argv", [])[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m motionaura_jax.COMMAND` imports from the current folder first, which may hold untrusted files that are
    # named like libraries. Nothing of ours lies there, except in a checkout.
    first = sys.path[0]
    if os.path.exists(first) and os.path.samefile(first, os.curdir) and first != os.path.dirname(__path__[0]):
        del sys.path[0]
    del first
    if "" in os.environ.get("PYTHONPATH", "-").split(os.pathsep):  # an empty entry stands for the current folder
        sys.path[:] = [path for path in sys.path if path and os.path.realpath(path) != os.path.realpath(os.curdir)]

__version__ = "0.1.0"

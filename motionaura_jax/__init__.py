"""Video generators in JAX: train, sample, evaluate, export.  docs/architecture.md is the map."""

__version__ = "0.1.0"

"""Flax Linen modules; the only package that imports flax.  Import the submodule you need: nothing is loaded here."""

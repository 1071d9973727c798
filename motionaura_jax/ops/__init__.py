"""Numerics with more than one implementation; each module keeps the library call as its reference."""

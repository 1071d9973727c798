"""Samplers, one file per family of processes."""

"""Inference from checkpoints; commands and the demo call only this."""

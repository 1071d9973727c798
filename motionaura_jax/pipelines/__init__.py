"""Inference from checkpoints, for the commands and the demo."""

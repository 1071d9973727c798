"""Trained weights on disk: checkpoints, releases, exports and published models."""

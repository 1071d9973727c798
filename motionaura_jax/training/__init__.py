"""Training of any system: the loop, its state and step, optimizer, data, checkpoints and monitoring."""

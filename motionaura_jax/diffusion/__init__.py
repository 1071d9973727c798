"""Diffusion processes as pure functions: corruption, losses, samplers, guidance.  No networks, no flax."""

"""From raw inputs to the conditions that a denoiser reads: text, scalars, and more to come."""

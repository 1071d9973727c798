"""Networks that predict clean latents from corrupted ones."""

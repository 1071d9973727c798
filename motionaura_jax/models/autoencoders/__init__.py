"""Video autoencoders: the contract in `base` and `geometry`, the 3D-MBQ-VAE, and tools without weights for all."""

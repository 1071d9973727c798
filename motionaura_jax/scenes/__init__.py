"""The rendered world: the embedded training data and its ground truth."""

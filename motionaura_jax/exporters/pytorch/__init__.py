"""The exported PyTorch model: the modules that are copied into an exported folder, and the writer of such folders."""

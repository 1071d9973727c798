"""Fixed networks whose features losses and metrics compare."""

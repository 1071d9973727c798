"""Writers of trained models: releases, PyTorch, StableHLO, adapters."""

"""What a training run will need, before any device has to hold it."""

"""Videos on disk, and the stateless map from a training step to its batch of clip fields."""

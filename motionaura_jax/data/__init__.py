"""Reading and writing of videos, and the stateless map from a training step to its batch."""

"""What can be trained: one file per system, pure functions over plain pytrees."""

"""Which published tensor is which of our leaves: one `Layout` per network."""

"""Systems: contracts that they share, and one folder per system that can be trained."""

"""Trained weights that one part hands to another."""

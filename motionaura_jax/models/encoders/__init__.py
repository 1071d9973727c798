"""Encoders of conditions: text."""

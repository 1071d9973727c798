"""Encoders of conditions: text and pictures, trained here or published."""

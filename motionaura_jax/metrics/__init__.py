"""Metrics of videos: numpy in, numbers out, no models."""

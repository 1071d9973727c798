"""Measures of videos and of success rates: numpy in, numbers out, no models."""

"""Estimates of the resources that a training run needs, made without its devices."""

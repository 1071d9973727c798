"""Shared plumbing: configs, recipes, errors, pytrees, the command line."""

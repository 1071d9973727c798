"""Layers that several networks share: convolutions and norms on channels-last video."""

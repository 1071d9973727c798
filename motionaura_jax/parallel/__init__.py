"""Devices that share the work: the mesh, where every array lies on it, and how processes find each other."""

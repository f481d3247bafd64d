"""Checkpoint formats that are read."""

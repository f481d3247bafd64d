"""Checkpoints of a run: write, verify, resume."""

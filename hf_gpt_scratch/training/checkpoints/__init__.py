"""Checkpoints of a run: written, checked, resumed from."""

"""Runs that `--minutes` bounds: the settings chosen for them, and as many steps as fit."""

"""Pretraining with Accelerate: settings, optimizer, checkpoints and the loop."""

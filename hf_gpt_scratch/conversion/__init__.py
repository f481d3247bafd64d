"""Conversion: released and foreign checkpoints to this project's safetensors, and back. Imports no torch by itself."""

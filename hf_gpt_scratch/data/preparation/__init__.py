"""Preparation: texts of any size to shards of tokens. Imports no torch."""

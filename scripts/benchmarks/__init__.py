"""Time and memory of this project beside its peers, measured interleaved in one run."""

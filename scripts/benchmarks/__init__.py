"""What this project costs next to its peers, measured interleaved in one run."""

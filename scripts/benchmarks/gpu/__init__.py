"""One command that proves and measures this project on a GPU; see its README."""

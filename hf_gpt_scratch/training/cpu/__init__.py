"""Speed and memory of training on a CPU."""

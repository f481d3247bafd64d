"""Text from a model: sampling, streaming, the demo, faster decoding on a CPU."""

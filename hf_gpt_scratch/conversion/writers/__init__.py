"""The files of a converted model: weights, configuration, tokenizer."""

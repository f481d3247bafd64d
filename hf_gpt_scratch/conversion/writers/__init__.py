"""What a conversion writes: weights, configuration, tokenizer."""

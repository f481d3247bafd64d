"""Text to tokens to windows: vocabulary, tokenizer, documents, token shards."""

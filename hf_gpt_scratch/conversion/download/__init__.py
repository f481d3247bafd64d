"""OpenAI's released files, resumed and verified."""

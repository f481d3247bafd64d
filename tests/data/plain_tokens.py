"""What a folder should hold, by tiktoken and numpy alone."""

from pathlib import Path

from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID


def plain_tokens(texts: list[str]) -> list[int]:
    """Each document's tokens and then <|endoftext|>, by tiktoken alone."""
    return sum(([*load_encoding().encode_ordinary(text), END_OF_TEXT_ID] for text in texts), [])


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}

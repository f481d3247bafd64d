"""Documents that datatrove has tokenized on many machines: its `.ds` files.

Its step `DocumentTokenizer` writes three files: the tokens, one after the other, as little-endian integers of 2 or 4
bytes (`.ds`); the end of each document in tokens, as 64-bit integers (`.ds.index`); and the tokenizer with the bytes
of a token, then the number of tokens (`.ds.metadata`). None of them has a checksum.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hf_gpt_scratch.data.pieces import Piece
from hf_gpt_scratch.data.tokenizer import encode_to_numpy, load_encoding
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID


PIECE_TOKENS = 1 << 20
PROOF_TOKENS = 1 << 16  # as many at the beginning of a file are tokenized again
HOW = f"write it with DocumentTokenizer(..., eos_token={END_OF_TEXT!r}, shuffle_chunk_size=None) and GPT-2's tokenizer"


def read_datatrove(path: Path) -> Iterator[Piece]:
    """Read the documents of a `.ds` file, each without the `<|endoftext|>` at its end.

    Raises:
        ValueError: the files do not belong together, or hold other tokens than GPT-2's; the line names the file.
        FileNotFoundError: there is no index or metadata beside it.
    """
    token_bytes = read_token_bytes(path)
    ends = np.fromfile(f"{path}.index", "<u8")
    num_tokens = int(ends[-1]) if len(ends) else 0
    if num_tokens * token_bytes != path.stat().st_size or (np.diff(ends.astype(np.int64), prepend=0) <= 0).any():
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not those of {path}.index: {HOW}")
    if num_tokens == 0:
        return
    tokens = np.memmap(path, f"<u{token_bytes}", "r")
    start = 0
    for number, end in enumerate(map(int, ends), 1):
        if tokens[end - 1] != END_OF_TEXT_ID:
            raise ValueError(f"{path} document {number} does not end with {END_OF_TEXT}: {HOW}")
        if start < PROOF_TOKENS:
            prove_vocabulary(path, tokens[start : end - 1][:PROOF_TOKENS])
        for first in range(start, end, PIECE_TOKENS):
            last = min(first + PIECE_TOKENS, end)
            is_last = last == end
            content = np.array(tokens[first : last - is_last])
            if content.size and content.max() > END_OF_TEXT_ID:
                raise ValueError(f"{path} holds the token {content.max()}, which GPT-2's vocabulary lacks: {HOW}")
            yield Piece(content, is_last, (last - first) * token_bytes)
        start = end


def read_token_bytes(path: Path) -> int:
    """Bytes of a token, 2 or 4, from the metadata."""
    metadata = Path(f"{path}.metadata")
    first_line = metadata.read_text(encoding="utf-8").partition("\n")[0]
    token_bytes = first_line.rpartition("|")[2]
    if token_bytes not in ("2", "4"):
        raise ValueError(f"{metadata} does not say how many bytes a token has: {HOW}")
    return int(token_bytes)


def prove_vocabulary(path: Path, tokens: np.ndarray) -> None:
    """Tokens of another vocabulary mean another text, which GPT-2's tokenizer does not turn into the same tokens.

    What was cut off the end may have been half a character: the last tokens do not count.
    """
    encoding = load_encoding()
    if (tokens > END_OF_TEXT_ID).any():
        return  # no text at all: refused where they are read
    text = encoding.decode_bytes(tokens.tolist()).decode("utf-8", errors="ignore")
    again = encode_to_numpy(text, encoding, special=True)
    proved = max(len(tokens) - 64, 0) if len(tokens) == PROOF_TOKENS else len(tokens)
    if not np.array_equal(tokens[:proved], again[:proved]):
        raise ValueError(f"{path} is of another vocabulary than GPT-2's: {HOW}")

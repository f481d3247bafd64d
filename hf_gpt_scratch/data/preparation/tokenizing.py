"""Text to tokens on all cores, in the order of the text."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import tiktoken

from hf_gpt_scratch.data.pieces import Piece
from hf_gpt_scratch.data.tokenizer import encode_to_numpy, load_encoding


BATCH_CHARS = 1 << 18
CHARS_OF_NOTHING = 64  # a piece that needs no work still takes memory while it waits
BATCHES_IN_FLIGHT = 3  # of each worker: enough that none waits, few enough that memory stays small

Place = TypeVar("Place")
Encoded = tuple[Place, Piece, np.ndarray | None]


def encode_in_order(
    pieces: Iterable[tuple[Place, Piece]],
    num_workers: int,
    encoding: tiktoken.Encoding | None = None,
    special: bool = False,
) -> Iterator[Encoded]:
    """Encode pieces with `num_workers` threads, and hand them on in their order with their tokens [N].

    The tokens are uint32, or the piece's own; None where it has no content. `<|endoftext|>` in a text is text like any
    other, unless it is `special`. tiktoken works outside of Python's lock, so threads use all cores, and a process
    that is killed leaves no others behind. The `encoding` is GPT-2's by default.
    """
    encoding = encoding or load_encoding()
    waiting: deque[Future[list[Encoded]]] = deque()
    threads = ThreadPoolExecutor(num_workers)
    try:
        for batch in batched_by_length(pieces):
            waiting.append(threads.submit(encode_batch, batch, encoding, special))
            if len(waiting) > BATCHES_IN_FLIGHT * num_workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def encode_batch(batch: list[tuple[Place, Piece]], encoding: tiktoken.Encoding, special: bool) -> list[Encoded]:
    """Encode the pieces of one batch."""

    def encode(piece: Piece) -> np.ndarray | None:
        if isinstance(piece.content, str):
            return encode_to_numpy(piece.content, encoding, special)
        return piece.content

    return [(place, piece, encode(piece)) for place, piece in batch]


def batched_by_length(pieces: Iterable[tuple[Place, Piece]]) -> Iterator[list[tuple[Place, Piece]]]:
    """Yield lists of pieces that have at least `BATCH_CHARS` together, but for the last."""
    batch: list[tuple[Place, Piece]] = []
    length = 0
    for place, piece in pieces:
        batch.append((place, piece))
        length += CHARS_OF_NOTHING if piece.content is None else len(piece.content) + 1
        if length >= BATCH_CHARS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch

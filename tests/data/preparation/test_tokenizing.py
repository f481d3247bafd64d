"""Proves that threads change neither tokens nor order, and that special tokens in a text are text."""

import random

import numpy as np
import pytest

from hf_gpt_scratch.data.pieces import Piece
from hf_gpt_scratch.data.preparation import tokenizing
from hf_gpt_scratch.data.preparation.tokenizing import batched_by_length, encode_in_order
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID


WORDS = ["The", "lamp", "went", "round", "it's", "12", "o'clock", "–", "über", "日本語", "<|endoftext|>", "\n\n", "x"]


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Piece]]:
    monkeypatch.setattr(tokenizing, "BATCH_CHARS", 500)
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randrange(100))) for _ in range(300)]
    return [(number, Piece(text, True, 0)) for number, text in enumerate(texts)]


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_tokens_are_those_of_tiktoken_in_the_order_of_the_text(pieces: list, num_workers: int) -> None:
    encoding = load_encoding()
    results = list(encode_in_order(iter(pieces), num_workers))
    assert [(number, piece) for number, piece, _ in results] == pieces
    for _, piece, tokens in results:
        assert tokens.tolist() == encoding.encode_ordinary(piece.content)
        assert END_OF_TEXT_ID not in tokens


def test_nothing_is_done_for_what_has_tokens_or_no_content() -> None:
    own = np.array([1, 2], np.uint16)
    results = list(encode_in_order([("a", Piece(own, True, 0)), ("b", Piece(None, True, 0))], 2))
    assert results[0][2] is own
    assert results[1][2] is None


def test_little_is_read_ahead(pieces: list) -> None:
    """Memory is bounded: while the first result is looked at, only some batches have been read."""
    taken = []

    def counted():
        for item in pieces:
            taken.append(item)
            yield item

    next(encode_in_order(counted(), 2))
    assert 0 < len(taken) < len(pieces) // 2
    assert max(len(batch) for batch in batched_by_length([(0, Piece(None, True, 0))] * 100)) <= 8


def test_error_of_a_source_comes_through(pieces: list) -> None:
    def breaking():
        yield from pieces[:50]
        raise ValueError("line 51 is not JSON")

    with pytest.raises(ValueError, match="line 51 is not JSON"):
        list(encode_in_order(breaking(), 2))

"""Proves that a document cut into pieces has the tokens of the whole, wherever the cuts and the blocks fall."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gpt_scratch.data.pieces import cut_string, cut_text
from hf_gpt_scratch.data.tokenizer import load_encoding


TEXTS = {
    "prose": "The lamp went round, and it's he'd said 12 345!  Then\n\n  came   \t the\r\n night… \u00a0\u2003end "
    * 20,
    "code": "def f(x):\n    return  x ** 2\n\n\nclass A:\n\tpass   # don't\n" * 20,
    "other scripts": "Ein Satz über Öl. 日本語の文章 です。 \u3000 Привет,  мир! \x1c\x1d \x85 عربى\n" * 20,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("piece_chars", [40, 41, 100, 10_000])
def test_tokens_of_pieces_are_those_of_the_document(text: str, piece_chars: int) -> None:
    encoding = load_encoding()
    pieces = list(cut_string(text, piece_chars))
    assert "".join(piece for piece, _ in pieces) == text
    assert [is_last for _, is_last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(piece) for piece, _ in pieces) <= piece_chars
    assert len(pieces) >= len(text) // piece_chars
    whole = encoding.encode_ordinary(text)
    assert sum((encoding.encode_ordinary(piece) for piece, _ in pieces), []) == whole


def test_cutting_anywhere_else_would_change_the_tokens() -> None:
    text, encoding = TEXTS["prose"], load_encoding()
    pieces = [text[start : start + 40] for start in range(0, len(text), 40)]
    assert sum(map(encoding.encode_ordinary, pieces), []) != encoding.encode_ordinary(text)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab '\n\t1é\u00a0\u2003\u3000\x1c\x85,;日sd"), min_size=30, max_size=200))
def test_cut_after_any_character_before_any_blank_keeps_the_tokens(text: str) -> None:
    encoding = load_encoding()
    pieces = [piece for piece, _ in cut_string(text, 29)]
    if all(before[-1:].strip() and after[:1] in " \n" for before, after in zip(pieces, pieces[1:], strict=False)):
        assert sum(map(encoding.encode_ordinary, pieces), []) == encoding.encode_ordinary(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(" \n\t\r\x0b\x0c"), st.integers(1, 60)).map(lambda run: run[0] * run[1]),
            st.text(alphabet=" \n\t", min_size=1, max_size=60),
            st.sampled_from(["word ", "it's\n", "x\t", "12 ", "é\n", "!\t", "日本 "]),
        ),
        min_size=3,
        max_size=12,
    ).map("".join)
)
def test_long_white_space_keeps_its_tokens_whatever_follows_it(text: str) -> None:
    """Runs longer than a piece, and words after them, which begin with the last of the white space."""
    encoding = load_encoding()
    pieces = [piece for piece, _ in cut_string(text, 32)]
    assert "".join(pieces) == text
    assert sum(map(encoding.encode_ordinary, pieces), []) == encoding.encode_ordinary(text)


def test_cuts_depend_on_the_document_and_not_on_its_blocks() -> None:
    text = TEXTS["prose"]
    expected = list(cut_string(text, 100))
    generator = random.Random(0)
    for _ in range(20):
        ends = sorted(generator.choices(range(len(text)), k=9))
        blocks = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
        assert list(cut_text(blocks, 100)) == expected


def test_stretch_without_white_space_is_cut_at_the_limit() -> None:
    assert [piece for piece, _ in cut_string("x" * 250, 100)] == ["x" * 100, "x" * 100, "x" * 50]
    assert [piece for piece, _ in cut_string(" " * 250, 100)] == [" " * 100, " " * 100, " " * 50]
    assert list(cut_string("")) == [("", True)]

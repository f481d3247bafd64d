"""Proves the sizes that options take; the other shared options are proved by the commands that have them."""

import argparse

import pytest

from hf_gpt_scratch.commands.options import num_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5 * 10**9), ("200 MB", 2 * 10**8), ("10kb", 10**4), ("1GiB", 2**30), ("5000", 5000)],
)
def test_sizes(text: str, expected: int) -> None:
    assert num_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-5GB", "5XB", "GB", "1e9", "5GB extra"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size: write it like 5GB"):
        num_bytes(text)

"""Proves the choice of the largest batch by hand."""

from dataclasses import replace

from scripts.benchmarks.gpu.largest_batch import BYTES_OF_PARAMETER, MOST_ROWS, USABLE, largest_rows
from scripts.benchmarks.gpu.plan import FULL


FIXED = BYTES_OF_PARAMETER * (12 * 12 * 768**2 + (50257 + 1024) * 768)


def test_by_hand():
    """GPT-2 has 124 million parameters, 2 GB with gradients and moments; windows of 100 MB each."""
    assert 1.9e9 < FIXED < 2.1e9
    peak, window = FIXED + 16 * 10**8, 10**8
    for fitting, expected in ((16, 16), (31, 16), (32, 32), (100, 64), (10**6, MOST_ROWS)):
        assert largest_rows(FULL, peak, round((FIXED + (fitting + 0.5) * window) / USABLE)) == expected


def test_a_full_device_takes_one_window():
    assert largest_rows(replace(FULL, rows=16), FIXED + 10**10, 10**9) == 1

"""Proves the search for the largest batch by hand: its first batch, the next ones, and what it is judged by."""

from dataclasses import replace

import pytest
import torch

from scripts.benchmarks.gpu import largest_batch
from scripts.benchmarks.gpu.largest_batch import (
    BYTES_OF_PARAMETER,
    USABLE,
    item_of,
    largest_rows,
    measure_largest,
    outcome_of,
)
from scripts.benchmarks.gpu.plan import FULL, REHEARSAL
from scripts.benchmarks.gpu.record import UNFINISHED, Outcome, Record
from scripts.benchmarks.gpu.step_candidates import NANOGPT, OURS
from scripts.benchmarks.measuring import Measurement


FIXED = BYTES_OF_PARAMETER * (12 * 12 * 768**2 + (50257 + 1024) * 768)
WIDTH = REHEARSAL.model["width"]
FIXED_TINY = BYTES_OF_PARAMETER * (12 * WIDTH**2 + (50257 + REHEARSAL.model["context"]) * WIDTH)


def test_by_hand():
    """GPT-2 has 124 million parameters, 2 GB with gradients and moments; windows of 100 MB each."""
    assert 1.9e9 < FIXED < 2.1e9
    peak, window = FIXED + 16 * 10**8, 10**8
    for fitting in (16, 31, 100, 1500):
        assert largest_rows(FULL, 16, peak, round((FIXED + (fitting + 0.5) * window) / USABLE)) == fitting


def test_a_full_device_takes_one_window():
    assert largest_rows(FULL, 16, FIXED + 10**10, 10**9) == 1


@pytest.mark.parametrize(
    ("capacity", "first", "tried", "fits"),
    [
        (2, 8, [8, 4, 2], [2]),
        (20, 8, [8, 18], [8, 18]),  # what was tried tells the memory of a window
        (14, 10, [10, 12], [10, 12]),
        (11, 16, [16, 8, 12], [8]),
        (100, 92, [92], [92]),
    ],
)
def test_the_search(tmp_path, monkeypatch, capacity, first, tried, fits):
    """A device of so many windows, of which a search may take the usable part; a step's memory is all its windows."""

    def measured_step(name, plan, task):
        def measure():
            if task.rows > capacity:
                raise torch.OutOfMemoryError("CUDA out of memory")
            peak = FIXED_TINY + task.rows * 10**8
            return {"tokens_per_second": 1.0, "peak_bytes": peak, "model": 1.0, "product": 2.0}

        return measure

    plan = replace(REHEARSAL, memory=FIXED_TINY + capacity * 10**8)
    rows = largest_batch.largest_rows
    is_first = iter([first])
    monkeypatch.setattr(largest_batch, "measured_step", measured_step)
    monkeypatch.setattr(largest_batch, "largest_rows", lambda *given: next(is_first, None) or rows(*given))
    record = Record(tmp_path, "step_speed")
    record.begin("steps")
    found = Outcome(["cut off"], {"candidates": {OURS: [{"details": {"peak_bytes": 1}}]}})
    record.end("steps", UNFINISHED, found, 1.0)
    outcomes = list(measure_largest(OURS, plan, tmp_path / "work"))
    assert [one.figures["rows"][-1] for one in outcomes] == fits
    assert outcomes[-1].figures["rows"] == tried[: tried.index(fits[-1]) + 1]


def test_limits_by_hand():
    """MFU of ours, and our speed over nanoGPT's; not for others."""
    samples = [Measurement(0, 0, 0, {"tokens_per_second": 200.0, "peak_bytes": 1, "model": 3.0, "product": 5.0})]
    ours = [{"tokens_per_second": 240.0}]
    (mfu,) = outcome_of(OURS, [8], samples, []).limits
    assert (mfu["reached"][1], mfu["met"]) == (0.6, True)
    (faster,) = outcome_of(NANOGPT, [8], samples, ours).limits
    assert (faster["reached"][1], faster["met"]) == (1.2, True)
    assert outcome_of(NANOGPT, [8], samples, []).limits == []
    assert item_of(OURS) == "largest batch, ours, compiled"

"""Proves the choice of the largest batch by hand, and that it is halved where it does not fit."""

import torch

from scripts.benchmarks.gpu import largest_batch
from scripts.benchmarks.gpu.largest_batch import BYTES_OF_PARAMETER, MOST_ROWS, USABLE, largest_rows, measure_largest
from scripts.benchmarks.gpu.plan import FULL, REHEARSAL
from scripts.benchmarks.gpu.record import DONE, Outcome, Record
from scripts.benchmarks.gpu.step_candidates import OURS


FIXED = BYTES_OF_PARAMETER * (12 * 12 * 768**2 + (50257 + 1024) * 768)


def test_by_hand():
    """GPT-2 has 124 million parameters, 2 GB with gradients and moments; windows of 100 MB each."""
    assert 1.9e9 < FIXED < 2.1e9
    peak, window = FIXED + 16 * 10**8, 10**8
    for fitting, expected in ((16, 16), (31, 16), (32, 32), (100, 64), (10**6, MOST_ROWS)):
        assert largest_rows(FULL, peak, round((FIXED + (fitting + 0.5) * window) / USABLE)) == expected


def test_a_full_device_takes_one_window():
    assert largest_rows(FULL, FIXED + 10**10, 10**9) == 1


def test_a_batch_that_does_not_fit_is_halved(tmp_path, monkeypatch):
    def measured_step(name, plan, task):
        def measure():
            if task.rows > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return {"tokens_per_second": 1.0, "peak_bytes": 2**20, "model": 1.0, "product": 2.0}

        return measure

    monkeypatch.setattr(largest_batch, "measured_step", measured_step)
    monkeypatch.setattr(largest_batch, "largest_rows", lambda plan, peak, free: 8)
    peaks = {OURS: [{"details": {"peak_bytes": 1}}]}
    record = Record(tmp_path, "step_speed")
    record.begin("steps")
    record.end("steps", DONE, Outcome(["done"], {"candidates": peaks}), 1.0)
    outcome = measure_largest(OURS, REHEARSAL, tmp_path / "work")
    assert outcome.figures["rows"] == [8, 4, 2]

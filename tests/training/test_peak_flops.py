"""Proves the measured peak by hand and against a plain timing."""

import time

import pytest
import torch

from hf_gpt_scratch.training import peak_flops
from hf_gpt_scratch.training.peak_flops import measure_peak_flops


def test_peak_is_two_operations_for_each_multiplication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_flops, "seconds_of_product", lambda matrix: 2 * len(matrix) ** 3 / 1e13)
    assert measure_peak_flops(torch.device("cpu"), torch.float32) == pytest.approx(1e13)


def test_peak_is_about_that_of_a_plain_product_and_soon_measured() -> None:
    """About: other processes may take most of the machine at any moment."""
    started = time.perf_counter()
    peak = measure_peak_flops(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - started < 3  # 0.3 s on a machine that does nothing else
    matrix = torch.rand(1024, 1024)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    plain = 2 * 1024**3 / min(seconds)
    assert plain / 10 < peak < plain * 10


def test_measuring_draws_nothing_from_the_generator_of_the_run() -> None:
    before = torch.get_rng_state()
    measure_peak_flops(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)

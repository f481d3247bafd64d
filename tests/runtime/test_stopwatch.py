"""Proves that the wall time is that of the process, and that laps add up."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from hf_gpt_scratch.runtime.stopwatch import Stopwatch, process_start


def test_the_wall_time_is_that_of_the_process() -> None:
    """By the kernel's own figures: clock ticks from its start to that of the process."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    age = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    assert time.perf_counter() - process_start() == pytest.approx(age, abs=1)


def test_laps_add_up() -> None:
    begun = time.perf_counter() - 100
    stopwatch = Stopwatch(begun)
    laps = [stopwatch.lap() for _ in range(3)]
    assert 100 < laps[0] < 160
    assert max(laps[1:]) < 60
    assert sum(laps) + stopwatch.read() == pytest.approx(time.perf_counter() - begun, abs=60)
    assert Stopwatch().read() < 60


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ends with an error."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    stopwatch = Stopwatch()
    for seconds in (2.0, 3.0):
        with contextlib.suppress(ValueError), stopwatch.part("samples"):
            now[0] += seconds
            raise ValueError
    now[0] += 10
    assert stopwatch.parts == {"samples": 5.0}
    assert (stopwatch.begun, stopwatch.read()) == (100.0, 15.0)

"""The wall time of a process, with Python's own start and the imports."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def process_start(process: psutil.Process | None = None) -> float:
    """Return when a process began, this one by default, by `time.perf_counter()`: before its imports."""
    return time.perf_counter() - (time.time() - (process or psutil.Process()).create_time())


class Stopwatch:
    """Wall time in laps, the first from now or a value of `time.perf_counter()`; and that of parts of the work."""

    def __init__(self, begun: float | None = None) -> None:
        self.begun = self.lap_begun = time.perf_counter() if begun is None else begun
        self.parts: defaultdict[str, float] = defaultdict(float)  # seconds of each, all together

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds inside to those of a part of the work."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] += time.perf_counter() - started

    def read(self) -> float:
        """Return the seconds of this lap so far."""
        return time.perf_counter() - self.lap_begun

    def lap(self) -> float:
        """Return the seconds of this lap, and begin the next."""
        seconds = self.read()
        self.lap_begun += seconds
        return seconds

"""The wall time of a process, with Python's own start and the imports."""

import time

import psutil


def process_start() -> float:
    """Return when this process began, by `time.perf_counter()`: before Python's own start and all imports."""
    return time.perf_counter() - (time.time() - psutil.Process().create_time())


class Stopwatch:
    """Wall time in laps, of which the first begins now or at a value of `time.perf_counter()`."""

    def __init__(self, begun: float | None = None) -> None:
        self.lap_begun = time.perf_counter() if begun is None else begun

    def read(self) -> float:
        """Return the seconds of this lap so far."""
        return time.perf_counter() - self.lap_begun

    def lap(self) -> float:
        """Return the seconds of this lap, and begin the next."""
        seconds = self.read()
        self.lap_begun += seconds
        return seconds

"""Show each step: as a bar in a terminal, as a line now and then in a log file."""

import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from tqdm import tqdm


Item = TypeVar("Item")

# Fits into 80 columns: the bar takes the space that is left.
BAR_FORMAT = "{n_fmt}/{total_fmt} |{bar}| {left} left{postfix}"
LOG_SECONDS = 10.0  # between two lines of a log
BEAT_SECONDS = 0.25  # between two readings of the clock
PAUSE_SECONDS = 2.0  # without a reading: then the whole process was stopped, not only busy


class WorkingTime:
    """The seconds since its creation, without those in which the process was stopped (SIGSTOP, Ctrl-Z).

    A thread reads the clock now and then; a gap between two readings means that it was stopped too.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.ended = threading.Event()
        self._paused = 0.0
        self._last_look = time.monotonic()
        threading.Thread(target=self._look, daemon=True).start()

    def _pause(self) -> float:
        pause = time.monotonic() - self._last_look
        return pause if pause > PAUSE_SECONDS else 0.0

    def _look(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            pause, self._last_look = self._pause(), time.monotonic()
            self._paused += pause

    def seconds(self) -> float:
        """Return the elapsed seconds without all pauses."""
        return time.perf_counter() - self.started - self._paused - self._pause()


class StepBar(tqdm):
    """A bar with a time left of ours, which counts more than steps."""

    seconds_left: float | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        """Add the time left to what a format may name."""
        left = "?" if self.seconds_left is None else tqdm.format_interval(self.seconds_left)
        return {**super().format_dict, "left": left}


class StepDisplay:
    """Shows loss, speed, memory and time left on stderr.

    Args:
        num_steps: optimizer steps of the run.
        first_step: steps done before, in a resumed run.
        enabled: False on a process that shows nothing.
        parts: seconds that went into other parts of the run than steps; they grow with it.
    """

    def __init__(
        self, num_steps: int, first_step: int, enabled: bool, parts: Mapping[str, float] | None = None
    ) -> None:
        self.num_steps = num_steps
        self.first_step = first_step
        self.parts = {} if parts is None else parts
        self.seconds_before = sum(self.parts.values())
        self.seconds_besides = 0.0  # of what is still to come besides the steps
        self.worked = WorkingTime()
        self.last_line = time.perf_counter()
        self.logs = enabled and not sys.stderr.isatty()
        self.bar = StepBar(
            total=num_steps,
            initial=first_step,
            disable=not enabled or self.logs,
            bar_format=BAR_FORMAT,
            dynamic_ncols=True,
        )

    def seconds_left(self, step: int) -> float:
        """Estimate the time until the result: of the steps by those of this process, and of what is left besides."""
        in_steps = max(0.0, self.worked.seconds() - (sum(self.parts.values()) - self.seconds_before))
        return (self.num_steps - step) * in_steps / (step - self.first_step) + self.seconds_besides

    def show(
        self, step: int, loss: float, tokens_per_second: float, mfu: float, memory: int, num_skipped: int = 0
    ) -> None:
        """Show a finished step; `memory` in bytes, `num_skipped` steps so far were not applied."""
        text = f"loss {loss:.3f}, {tokens_per_second:,.0f} tok/s, MFU {mfu:.0%}, {memory / 1e9:.1f} GB"
        text += f", {num_skipped} skipped" if num_skipped else ""
        self.bar.total, self.bar.seconds_left = self.num_steps, self.seconds_left(step)
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        now = time.perf_counter()
        if self.logs and (now - self.last_line >= LOG_SECONDS or step == self.num_steps):
            self.last_line = now
            left = tqdm.format_interval(self.bar.seconds_left)
            print(f"step {step}/{self.num_steps}, {left} left, {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Keep the bar as it is and end its line."""
        self.worked.ended.set()
        self.bar.close()


def evaluation_bar(batches: Iterable[Item], num_batches: int, enabled: bool) -> "tqdm[Item]":
    """Show on a terminal how far an evaluation is, if it takes more than two seconds."""
    return tqdm(
        batches,
        total=num_batches,
        desc="evaluating",
        unit="batch",
        delay=2,
        leave=False,
        dynamic_ncols=True,
        disable=None if enabled else True,
    )


def warn(line: str) -> None:
    """Print a line on stderr without breaking the progress bar."""
    with tqdm.external_write_mode():
        print(f"warning: {line}", file=sys.stderr, flush=True)

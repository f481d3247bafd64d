"""Signals as a wish to stop: the handler only notes them, the program stops where it is safe."""

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """A run stopped by a signal, after saving; the text says how to go on.

    Args:
        message: what was saved and how to go on, one line.
        signal_number: the signal that stopped it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignals:
    """While entered, notes the first SIGINT or SIGTERM in `received`; a second one acts at once, as if unhandled."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        self.previous = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

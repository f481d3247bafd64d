"""Signals as a wish to stop: the handler only notes them, the program stops where it is safe."""

import signal
from types import FrameType, TracebackType


class Stopped(Exception):
    """A run that all its processes stopped at the same step; the text says in one line why and how to go on."""

    exit_code: int


class Interrupted(Stopped):
    """A run stopped by a signal, after saving.

    Args:
        message: what was saved and how to go on, one line.
        signal_number: the signal that stopped it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignals:
    """While entered, notes the first SIGINT, SIGTERM or SIGUSR1 in `received`.

    After it, Ctrl-C ends the process at once; every other signal is still only noted, since a scheduler sends SIGTERM
    after SIGUSR1, and a launcher hands on to its processes what they may have got already.
    """

    # SIGUSR1 is what Slurm is asked to send before it takes a machine away; Windows does not have it.
    signals = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        self.previous = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        # The system's own action: Python's would wait for the end of a call into C, such as waiting for a process.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

"""Signals that stop a program: noticed at once, whatever is being computed, and followed where it is safe."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn


GRACE_SECONDS = 1.5  # in which an interrupted program may clean up, before it is ended wherever it is
REPEAT_SECONDS = 0.5  # in which a second Ctrl-C is the first one, forwarded by a launcher


class Stopped(Exception):
    """A run that all its processes stopped at the same step; the text says in one line why and how to continue."""

    exit_code: int


class Interrupted(Stopped):
    """A run stopped by a signal, after saving where there was something to save; the message says how to continue."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Terminated(SystemExit):
    """A signal asks for the end of a program that has nothing to save."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(self.exit_code)

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.exit_code - 128).name}"


class SignalListener:
    """A context that calls `hear` for each signal that Python handles, at once and in a thread of its own.

    Python's handlers run in the main thread, after the call into C that it is in: a backward pass, or the tokenizing
    of a text, take many seconds.
    """

    def __init__(self) -> None:
        self.left = threading.Event()  # set when the context is left

    def __enter__(self) -> "SignalListener":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._previous_descriptor)
        self.left.set()
        self._writer.close()

    def _listen(self) -> None:
        with self._reader:
            while number := self._reader.recv(1):
                self.hear(number[0])

    def hear(self, number: int) -> None:
        """Do nothing."""


class EndSignals(SignalListener):
    """While entered, Ctrl-C, SIGTERM and SIGHUP end the program: as KeyboardInterrupt or `Terminated`, so that what is
    half written is cleared away, or wherever it is after `GRACE_SECONDS`.

    Any error after the signal becomes one of the two: in the middle of an import some libraries drop it, and fail then
    at what was half imported. SIGHUP stays ignored where it is, as under nohup. The processes of a distributed run
    wait for each other where Python sees no signal: there SIGTERM and SIGHUP keep the system's own action, and the
    launcher reports it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._received = 0
        self._deadly: list[int] = []  # beside Ctrl-C

    def __enter__(self) -> "EndSignals":
        names = () if "RANK" in os.environ else ("SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        super().__enter__()
        self._deadly = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
        for number in self._deadly:
            signal.signal(number, self._terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._received:
            for number in self._deadly:
                signal.signal(number, signal.SIG_DFL)
        super().__exit__(kind, error, traceback)
        if self._received and isinstance(error, Exception):
            raise (KeyboardInterrupt if self._received == signal.SIGINT else Terminated(self._received)) from None

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        for other in self._deadly:
            signal.signal(other, signal.SIG_IGN)  # the way out is short, and must not be cut off
        raise Terminated(number)

    def hear(self, number: int) -> None:
        """End the process if the main thread does not within `GRACE_SECONDS`."""
        if number == signal.SIGINT or number in self._deadly:
            self._received = self._received or number
            if not self.left.wait(GRACE_SECONDS):
                end_process("interrupted" if number == signal.SIGINT else str(Terminated(number)), 128 + number)


class StopSignals(SignalListener):
    """While entered, SIGINT, SIGTERM, SIGHUP or SIGUSR1 ends the work: `Interrupted` is raised from the context.

    That comes at any point of the main thread, or, where this is in a call into C for longer than `GRACE_SECONDS`,
    the process ends there. Inside `noted()` the signal is only announced and put into `received`, for the program to
    stop where it is safe. Then a second Ctrl-C ends the process at once; every other signal is still only noted, since
    a scheduler sends SIGTERM after SIGUSR1, and a launcher forwards what its processes may have got already. SIGHUP
    stays ignored where it is, as under nohup.

    Args:
        message: of `Interrupted`; it may be changed as the program proceeds.
    """

    # SIGUSR1 is what Slurm is asked to send before it takes a machine away; Windows has neither it nor SIGHUP.
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")

    def __init__(self, message: str = "") -> None:
        super().__init__()
        self.message = message
        self.received = 0
        self._is_noting = False
        self._is_announced = False
        self._raised = 0
        self._previous: dict[int, Any] = {}  # the earlier handlers

    def __enter__(self) -> "StopSignals":
        numbers = [getattr(signal, name) for name in self.names if hasattr(signal, name)]
        handled = [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]
        super().__enter__()
        self._previous = {number: signal.signal(number, self._interrupt) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        super().__exit__(kind, error, traceback)
        if self._raised and error is not None:  # whatever became of it in a library
            raise Interrupted(self.message, self._raised) from None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only note signals inside; `Interrupted` is raised at the end if one came, unless an exception leads out."""
        self._is_noting = True
        yield
        self._is_noting = False
        if self.received:
            raise Interrupted(self.message, self.received)

    @contextmanager
    def heeded(self, message: str) -> Iterator[None]:
        """End the work at a signal inside, with that message, as outside of `noted()`."""
        before, self.message, self._is_noting = self.message, message, False
        yield
        self.message, self._is_noting = before, True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_noting:
            # Here and not only in the listener's thread, whose turn may come some milliseconds later.
            self.received = self.received or number
        elif not self._raised:
            self._raised = number
            raise KeyboardInterrupt

    def hear(self, number: int) -> None:
        """Note a signal and say so, or end the process."""
        if number not in self._previous:
            return
        if not self._is_noting:
            if not self.left.wait(GRACE_SECONDS):
                end_process(self.message, 128 + number)
        elif not self._is_announced:
            self._is_announced, self._heard = True, time.monotonic()
            self.received = self.received or number  # where the main thread is in a call into C
            # A launcher of several processes does not forward a second Ctrl-C.
            again = "; Ctrl-C again to stop without" if "RANK" not in os.environ else ""
            say_at_once(f"{signal.Signals(number).name}: stopping after this step, saving{again}")
        elif number == signal.SIGINT and time.monotonic() - self._heard >= REPEAT_SECONDS:
            end_process("stopped without saving: continue from the last checkpoint with --resume", 130)


def end_process(line: str, exit_code: int) -> NoReturn:
    """End the process from any thread, whatever the others are doing, with a line from the main process."""
    say_at_once(line)
    os._exit(exit_code)


def say_at_once(line: str) -> None:
    """Write a line to stderr from the main process, bypassing Python's stream, which may be in use."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # the terminal is gone
            start = "\n" if os.isatty(2) else ""  # a progress bar may stand there
            os.write(2, f"{start}{line}\n".encode())


def leave_process_group() -> None:
    """Let the threads of a process group finish, if there is one; call it last, before the model is freed.

    Freeing a DDP model in PyTorch 2.13 joins gloo's threads while it holds Python's lock. One that has just ended a
    broadcast and waits for that lock, to free a tensor, would wait forever, and the process with it.
    """
    import torch

    if torch.distributed.is_initialized():
        time.sleep(0.2)

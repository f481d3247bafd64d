"""Command lines of all scripts: options checked where they are parsed, one line for a mistake, exit codes."""

import argparse
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, NoReturn, TextIO

from hf_gpt_scratch.runtime.out_of_memory import ADVICE, is_out_of_memory, out_of_memory_line
from hf_gpt_scratch.runtime.signals import EndSignals, Stopped, Terminated, leave_process_group


LAUNCHER_SECONDS = 10  # torchrun notices a dead process within one
NO_THREAD = "can't start new thread"  # what Python says, in a RuntimeError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises a mistake as a ValueError of one line instead of printing the usage.

    Flags are in snake_case and documented so; `--top-k` is read as `--top_k`. Texts and paths may not be empty, as
    "$UNSET" is in a shell: an empty path would be the current folder. An option that may be empty says `type=str`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", None, filled)
        self.register("type", Path, lambda value: Path(filled(value)))

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add an option, once where a library gives both spellings."""
        return super().add_argument(*dict.fromkeys(map(snake_case, names)), **options)

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse words whose flags are in either spelling."""
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(snake_case, words[:end]), *words[end:]], namespace)

    def error(self, message: str) -> NoReturn:
        """Raise for what argparse cannot parse, or what a type refuses."""
        raise ValueError(f"{message}; --help lists all flags")


def snake_case(word: str) -> str:
    """Return `--top-k` as `--top_k` and `--top-k=5` as `--top_k=5`; other words as they are."""
    flag = re.match(r"--[\w-]+(?==|$)", word)
    return f"--{flag[0][2:].replace('-', '_')}{word[flag.end() :]}" if flag else word


@dataclass(frozen=True)
class Range:
    """A rule for a number: `minimum` <= value, and value < `below`."""

    minimum: float
    below: float = math.inf

    def broken_by(self, value: float | None) -> bool:
        """Return True if a value is outside; NaN and infinity always are, None never."""
        return value is not None and not self.minimum <= value < self.below

    def __str__(self) -> str:
        return f"at least {self.minimum}" + (f" and below {self.below}" if self.below < math.inf else "")


def number(kind: type[int] | type[float], minimum: float, below: float = math.inf) -> Callable[[str], int | float]:
    """Return a type for an option: a number that `Range(minimum, below)` allows; the parser names the option."""
    rule = Range(minimum, below)

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be a {'whole ' * (kind is int)}number, {rule}, got {text!r}"
            ) from None
        if rule.broken_by(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, got {text}")
        return value

    return parse


def refuse_unused(arguments: argparse.Namespace, options: Sequence[str], place: str) -> None:
    """Raise ValueError for options, such as "--text", that would do nothing in this place, such as "with --verify"."""
    values = {option: getattr(arguments, option.lstrip("-")) for option in options}
    if given := [option for option, value in values.items() if value not in (None, False)]:
        raise ValueError(f"{' and '.join(given)} would do nothing {place}: leave it out")


def filled(value: str) -> str:
    """Return the value of an option, which may not be empty; the parser adds the name of the option to the error."""
    if not value.strip():
        raise argparse.ArgumentTypeError("the value is empty: give one, or leave the option out")
    return value


def folder_or_repository(value: str) -> str:
    """Return the value of --model, which may not be a file; the parser adds the name of the option to the error."""
    path = Path(filled(value))
    if path.is_file():
        raise argparse.ArgumentTypeError(f"{value} is a file: name its folder, {path.parent}")
    return value


class ShownLines:
    """A standard stream whose lines are only shown: none of them ends the work.

    A character that the console lacks is written as its escape. When nobody reads any more, or the disk behind the
    stream is full, the rest goes nowhere, and `lost` says why.

    Args:
        stream: the stream.
        is_result: what is shown is the result itself, as that of generate.py: then `OutputLost` ends the work.
    """

    lost: str | None = None

    def __init__(self, stream: TextIO, is_result: bool = False) -> None:
        self.stream = stream
        self.is_result = is_result
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write as much as can be shown."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = error.strerror or str(error)
        # Also for what is still in the buffer, which Python would try again at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        if self.is_result:
            raise OutputLost(error) from None


def lost_streams() -> dict[str, str]:
    """Return the standard streams that nothing can be written to any more, by name, and why in the system's words."""
    reasons = {name: getattr(getattr(sys, name), "lost", None) for name in ("stdout", "stderr")}
    return {name: reason for name, reason in reasons.items() if reason}


class OutputLost(Stopped):
    """Nobody reads the result any more, or it cannot be written."""

    def __init__(self, error: OSError) -> None:
        is_closed_pipe = isinstance(error, BrokenPipeError)
        super().__init__("" if is_closed_pipe else f"error: the output cannot be written: {error.strerror or error}")
        self.exit_code = 141 if is_closed_pipe else 1


def wrap_streams(shows_result: bool) -> None:
    """Make `ShownLines` of the standard streams; one that was closed is None, and stays it.

    Raises:
        OutputLost: what is shown is the result, and standard output was closed.
    """
    sys.stderr = sys.stderr and ShownLines(sys.stderr)
    if shows_result and sys.stdout is None:
        raise OutputLost(OSError("standard output is closed"))
    sys.stdout = sys.stdout and ShownLines(sys.stdout, shows_result)


def run(main: Callable[[], None], shows_result: bool = False, memory_advice: str = ADVICE) -> None:
    """Call `main` and leave the process with the exit code that belongs to what happened.

    0 after success; 1 after a ValueError or OSError, whose message is printed as one line on stderr; 130, 143, 129 or
    138 after Ctrl-C, SIGTERM, SIGHUP or SIGUSR1. With HF_GPT_SCRATCH_TRACEBACK=1 the traceback is shown as well.

    Args:
        main: the program.
        shows_result: what it prints is its result. It ends where that cannot be written: with 1 and a line, or after
            a closed pipe with 141 and nothing, as programs do that SIGPIPE ends. Otherwise it continues.
        memory_advice: what to do where memory runs out.
    """
    try:
        wrap_streams(shows_result)
        with EndSignals():
            main()
        print(end="", flush=True)
    except (Stopped, Terminated) as stop:
        say_once(str(stop))  # the others stop for the same reason
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HF_GPT_SCRATCH_TRACEBACK") == "1":
            raise
        if is_out_of_memory(error):
            say(f"error: {out_of_memory_line(error, memory_advice)}")
        elif isinstance(error, ValueError | OSError) or NO_THREAD in str(error):
            say(f"error: {describe(error)}")
        elif isinstance(error, RuntimeError) and is_lost_process(error):
            # The launcher reports the process that died and ends this one. Only if it does not, this one speaks.
            time.sleep(LAUNCHER_SECONDS)
            say(f"error: another process of the run died or hangs, see its message: {describe(error)}")
        else:
            raise
        sys.exit(1)
    finally:
        if "torch" in sys.modules:  # not loaded here if a script never did, or was interrupted there
            leave_process_group()


def is_lost_process(error: Exception) -> bool:
    """Return True if another process of this run did not answer; gloo's error has no type of its own."""
    if "torch" not in sys.modules:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "/gloo/" in str(error)


def describe(error: Exception) -> str:
    """Return one line for an exception; of an operating-system error the path and the system's own words."""
    if NO_THREAD in str(error):
        return "no thread can be started: raise the limits of processes and memory (ulimit -u, -v)"
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def name_some(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first eight of a list, and say how many more there are."""
    more = len(items) - 8
    return separator.join(items[:8]) + (f"{separator}and {more} more" if more > 0 else "")


def say(line: str) -> None:
    """Print one line on stderr; processes beside the main one say which they are."""
    process = int(os.environ.get("RANK", "0"))
    print(f"[process {process}] {line}" if process else line, file=sys.stderr)


def say_once(line: str) -> None:
    """Print one line on stderr, unless it is empty, from the main process alone."""
    if line and os.environ.get("RANK", "0") == "0":
        say(line)


def writes_unicode() -> bool:
    """Return True if standard output can show every character."""
    return "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars, and the reminder of the context, which all scripts know how to pass."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a small model is loaded before its bar is drawn
    logger = getLogger("transformers.generation.stopping_criteria")
    logger.addFilter(lambda record: "friendly reminder" not in record.getMessage())

"""What all scripts share: a user's mistake ends in one line and an exit code, not in a traceback."""

import os
import sys
import time
from collections.abc import Callable

from .interrupts import Stopped
from .out_of_memory import is_out_of_memory, out_of_memory_line


LAUNCHER_SECONDS = 10  # torchrun notices a dead process within one


def run(main: Callable[[], None]) -> None:
    """Call `main` and leave the process with the exit code that belongs to what happened.

    0 after success; 1 after a ValueError or OSError, whose message is printed as one line on stderr; 130, 143 or
    138 after Ctrl-C, SIGTERM or SIGUSR1. With HF_GPT_SCRATCH_TRACEBACK=1 the traceback is shown as well.
    """
    try:
        main()
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":  # the others stop for the same reason
            say(str(stop))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("HF_GPT_SCRATCH_TRACEBACK") == "1":
            raise
        say(f"error: {describe(error)}")
        sys.exit(1)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error) and os.environ.get("HF_GPT_SCRATCH_TRACEBACK") != "1":
            say(f"error: {out_of_memory_line(error)}")
            sys.exit(1)
        if not is_lost_process(error) or os.environ.get("HF_GPT_SCRATCH_TRACEBACK") == "1":
            raise
        # The launcher reports the process that died and ends this one. Only if it does not, this one speaks.
        time.sleep(LAUNCHER_SECONDS)
        say(f"error: another process of the run died or hangs, see its message: {describe(error)}")
        sys.exit(1)
    finally:
        if "torch.distributed" in sys.modules:  # a script that never loaded it shall not wait for it
            from .launching import leave_process_group

            leave_process_group()


def is_lost_process(error: Exception) -> bool:
    """Whether an error says that another process of this run did not answer; gloo's has no type of its own."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "/gloo/" in str(error)


def describe(error: Exception) -> str:
    """One line for an exception; of an operating-system error the path and the system's own words."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def say(line: str) -> None:
    """Print one line on stderr; processes beside the main one say which they are."""
    process = int(os.environ.get("RANK", "0"))
    print(f"[process {process}] {line}" if process else line, file=sys.stderr)


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars: a small model is loaded before its bar is drawn."""
    from transformers.utils import logging

    logging.disable_progress_bar()

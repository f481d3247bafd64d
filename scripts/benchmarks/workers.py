"""Candidates in processes of their own, warmed up once, then asked for one sample after the other.

The start (imports, weights, compiling) is not in the samples, and no candidate sees the memory of another. A candidate
is a function `make(**options)` that gets ready and returns a function which does the work of one sample, and returns
its details, such as its loss.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from .measuring import Measurement, Results, interleave


PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Candidate:
    """A name, a function as "module:name", its options, the Python that runs it, and the checkout that has it."""

    name: str
    make: str
    options: dict[str, Any] = field(default_factory=dict)
    python: Path = Path(sys.executable)
    source: Path = PACKAGE_PARENT


def worker_environment(threads: int, source: Path = PACKAGE_PARENT) -> dict[str, str]:
    """Return the environment variables of a process that finds a checkout's package and computes on some threads."""
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


class Worker:
    """The process of a candidate, from the start to the end of a `with` block."""

    def __init__(self, candidate: Candidate, threads: int) -> None:
        self.candidate = candidate
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__
        self.process = subprocess.Popen(
            [candidate.python, "-m", __name__, candidate.make, json.dumps(candidate.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=worker_environment(threads, candidate.source),
            # Python looks for modules where it is started first.
            cwd=None if candidate.source == PACKAGE_PARENT else candidate.source,
            text=True,
        )
        # Popen has both as pipes, but its type says None too.
        self.requests, self.answers = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def sample(self) -> Measurement:
        """Do the work of one sample; the first one is for warming up.

        Raises:
            ValueError: the candidate fails; with the last line that it printed on stderr.
        """
        try:
            self.requests.write("sample\n")
            self.requests.flush()
            answer = self.answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            last = self.errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"{self.candidate.name} failed with exit code {self.process.returncode}: {last}")
        return Measurement(**json.loads(answer))


def run_workers(candidates: Iterable[Candidate], rounds: int, threads: int, warm_up: int = 1) -> Results:
    """Start all candidates, let each warm up alone, then sample them in turn; all are in memory at once.

    Raises:
        ValueError: one fails, or `rounds` is below 1.
    """
    with ExitStack() as stack:
        samplers = {}
        for candidate in candidates:
            worker = stack.enter_context(Worker(candidate, threads))
            for _ in range(warm_up):
                worker.sample()
            samplers[candidate.name] = worker.sample
        return interleave(samplers, rounds)


def serve(make: str, options: str) -> None:
    """Run the process of a candidate: get ready, then take a sample for each line on standard input."""
    # The output of libraries goes to stderr; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = make.partition(":")
    work = getattr(importlib.import_module(module), name)(**json.loads(options))
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        details = work() or {}
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        details = details() if callable(details) else details  # what is found out after the work is not part of it
        answers.write(json.dumps({"cpu": cpu, "wall": wall, "memory": peak_memory_mib(), "details": details}) + "\n")
        answers.flush()


def peak_memory_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


if __name__ == "__main__":
    serve(*sys.argv[1:])

"""The command `gpu`: starts the parts, each in a process of its own with a time limit, and sums up what they found."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.runtime.cli import refuse_unused
from hf_gpt_scratch.runtime.files import write_file
from scripts.benchmarks.benchmark import Benchmark
from scripts.benchmarks.workers import worker_environment

from .plan import FULL, REHEARSAL, SECONDS, Plan
from .record import Record
from .summary import count_line, summary_lines, unfinished


if TYPE_CHECKING:
    import argparse

REHEARSAL_TIMES = 5.0  # as long as on a GPU: the limits are for what hangs, not for a busy machine


class Gpu(Benchmark):
    """Proof and measurements on one GPU, or their rehearsal on a CPU."""

    help = "proof and measurements on one GPU, in under ten minutes"
    packages = ("torch", "transformers", "accelerate")
    needs = ("out",)

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add the folder of the results, the rehearsal, the parts and the text."""
        parser.add_argument("--out", type=Path, metavar="DIR", help="new folder for the results")
        parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, to try the command itself")
        parser.add_argument("--parts", nargs="+", metavar="PART", default=list(SECONDS), help=f"{', '.join(SECONDS)}")
        parser.add_argument("--text", type=Path, metavar="FILE", help="text to train on, such as Tiny Shakespeare")

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Run all parts, and show and write the table of what they found, also after Ctrl-C.

        Yields:
            Nothing: the folder has all figures.

        Raises:
            ValueError: an option is wrong or would do nothing, the folder is in use, or an item failed.
        """
        if unknown := [part for part in arguments.parts if part not in SECONDS]:
            raise ValueError(f"unknown {unknown[0]!r}: choose from {'; '.join(SECONDS)}")
        refuse_unused(arguments, ["--json", "--peer_python", "--engine_python"], "with gpu")
        text, nanogpt = arguments.text, arguments.nanogpt
        for name, file in (("text", text), ("nanogpt", nanogpt and nanogpt / "model.py")):
            if file and not file.is_file():
                raise ValueError(f"--{name} {getattr(arguments, name)}: there is no file {file}")
        out = arguments.out.resolve()
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"--out {out} holds files already: name a new folder")
        (out / "work").mkdir(parents=True)
        plan, times = (REHEARSAL, REHEARSAL_TIMES) if arguments.rehearse else (FULL, 1.0)
        given: dict[str, Any] = {
            name: str(value.resolve()) for name in ("nanogpt", "text") if (value := getattr(arguments, name))
        }
        plan = replace(plan, threads=arguments.threads, **given)
        deadline = time.monotonic()
        try:
            for part in arguments.parts:
                deadline += times * SECONDS[part]
                run_part(part, plan, out, deadline)
                print(count_line(Record(out, part).content), flush=True)
        finally:
            shutil.rmtree(out / "work", ignore_errors=True)
            lines = summary_lines([Record(out, part).content for part in arguments.parts])
            write_file(out / "summary.txt", "".join(f"{line}\n" for line in lines))
            print("\n".join(lines), flush=True)
        if bad := [item for part in arguments.parts for item in unfinished(Record(out, part).content)]:
            raise ValueError(f"{len(bad)} did not pass, the first is {bad[0]}: see {out / 'summary.txt'}")
        yield from ()


def run_part(part: str, plan: Plan, out: Path, deadline: float) -> None:
    """Run a part to its end or its limit, and write how it ended.

    A process that dies is started again as long as each one gets further.

    Args:
        part: its name.
        plan: of all parts.
        out: folder of the results; `PART.log` there has what the processes print.
        deadline: by `time.monotonic()`.
    """
    command = [sys.executable, "-m", f"{__package__}.parts", part, str(out), json.dumps(asdict(plan))]
    environment = worker_environment(plan.threads) | {"HF_HUB_OFFLINE": "1"}
    started, known, ended = time.monotonic(), -1, ""
    with (out / f"{part}.log").open("ab") as log:
        while not ended:
            # A group of its own: whatever it has started ends with it.
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                code = process.wait(timeout=max(0.0, deadline - time.monotonic()))
                reached = len(Record(out, part).items)
                if code == 0:
                    ended = "at its end"
                elif reached == known or reached == 0:
                    ended = f"with exit code {code}: {last_line_of(out / f'{part}.log')}"
                known = reached
            except subprocess.TimeoutExpired:
                ended = "at its time limit"
            except BaseException:
                ended = "interrupted"
                raise
            finally:
                end_group(process)
                if ended:
                    Record(out, part).note(ended=ended, seconds=round(time.monotonic() - started, 1))


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the process and of all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may take longer to let go of its memory
        process.wait(timeout=0.5)


def last_line_of(log: Path) -> str:
    """Return the last line that a part has printed."""
    return log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]

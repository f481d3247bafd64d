"""The part of a training run that goes into anything but its steps, for texts of 20 KB to 1 GB and no further flags.

Every run is the command that users type, in a process of its own. Most are bounded by `--minutes`, so that they end:
what their starts are of a run with the default epochs is told by the time of their steps. Its evaluations, samples,
checkpoints and end are assumed to take the part of it that they take of the measured run, though it plans others. Of
runs without `--minutes` the time is estimated beforehand, by `--dry_run` and by themselves.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.runtime.cli import number

from .benchmark import Benchmark
from .growth import SCRIPTS, documents
from .measuring import Measurement, build_report, describe_limit, interleave, measure


if TYPE_CHECKING:
    import argparse

STEPS = "1 MB, 300 steps"
SIZES = {"20 KB": 20_000, "1 MB": 10**6, "10 MB": 10**7, "100 MB": 10**8, "1 GB": 10**9, STEPS: 10**6}
NOT_BOUNDED: dict[str, list[str]] = {"20 KB": [], STEPS: ["--max_steps", "300"]}  # their flags; no minutes
LIMIT, LIMIT_OF_ESTIMATES = 0.10, 1.2
OTHERS, START, TOGETHER = (
    "evaluations, samples, checkpoints and end",
    "start, of a whole run",
    "all together, of a whole run",
)
ESTIMATES = ("estimate of the dry run", "estimate of the run")  # over the wall time, or the other way round
LIMITS = dict.fromkeys((OTHERS, START, TOGETHER), LIMIT) | dict.fromkeys(ESTIMATES, LIMIT_OF_ESTIMATES)
PARTS = ("evaluations", "samples", "checkpoints")


class Shares(Benchmark):
    """Default runs on texts of Python's own source, in random stretches."""

    help = "the part of a default run that evaluations, samples, checkpoints, start and end take, by the text's size"
    packages = ("torch", "transformers", "accelerate", "tiktoken")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add `--sizes`, `--minutes` and `--dir`."""
        parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all of them")
        parser.add_argument(
            "--minutes", type=number(float, 0), default=3.0, help="of runs that do not end soon (default: 3)"
        )
        parser.add_argument("--dir", type=Path, help="disk to work on; 3 GB must fit")

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Run all sizes in turn; ValueError: a run fails."""
        machine = self.describe_machine(arguments)
        with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="hf_gpt_scratch-") as folder:
            samplers = {
                size: sampler(size, Path(folder), arguments.minutes, arguments.threads) for size in arguments.sizes
            }
            results = interleave(samplers, arguments.rounds)
        limits = [
            describe_limit(f"{size}: {what}", [sample.details[what] for sample in results[size]], "at most", limit)
            for size in results
            for what, limit in LIMITS.items()
            if what in results[size][0].details and not (size == STEPS and limit == LIMIT)  # which is no default run
        ]
        yield build_report("shares", f"default runs, {', '.join(results)} of text", machine, results, limits=limits)


def sampler(size: str, root: Path, minutes: float, threads: int) -> Callable[[], Measurement]:
    """Write a text of a size, and return what measures a run on it."""
    text = root / f"{size.replace(' ', '-')}.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(documents(SIZES[size]))
    bound = NOT_BOUNDED.get(size, ["--minutes", str(minutes), "--choose", "none"])
    return partial(measure_run, text, root / "output", bound, threads)


def measure_run(text: Path, output: Path, flags: list[str], threads: int) -> Measurement:
    """Measure a run and its parts, and remove its output; ask before how long it will take, if no minutes say it."""
    words = [sys.executable, SCRIPTS / "train.py", "--train_file", text, "--output_dir", output, *flags]
    command = [str(word) for word in words]
    estimate = None if "--minutes" in flags else dry_run_seconds(command, threads)
    measured = measure(["env", f"OMP_NUM_THREADS={threads}", *command])
    history = [json.loads(line) for line in (output / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(output)
    return replace(measured, details=describe_run(history, measured.wall, estimate))


def dry_run_seconds(command: list[str], threads: int) -> float:
    """Return the seconds that `--dry_run` says a command will take; ValueError: it fails or says no time."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.run([*command, "--dry_run"], capture_output=True, text=True, env=environment)
    found = re.search(r"time about (?:(\d+) days?, )?(\d+):(\d+):(\d+)", process.stdout)
    if process.returncode or found is None:
        last = (process.stderr or process.stdout).strip().rpartition("\n")[2]
        raise ValueError(f"--dry_run says no time: {last}")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)


def describe_run(history: list[dict[str, Any]], wall: float, estimate: float | None = None) -> dict[str, Any]:
    """Return the parts of a run's wall time, and what they are of a run of the default epochs.

    Args:
        history: rows of the run.
        wall: seconds of the whole command.
        estimate: of them, by `--dry_run`; None: it was not asked.
    """
    run = next(row for row in history if row["event"] == "run")
    end = next(row for row in history if row["event"] == "end")
    steps = sum(row["event"] == "step" for row in history)
    parts = end["seconds_of_parts"]
    start, in_parts = parts["start"], sum(parts.get(name, 0.0) for name in PARTS)
    a_step = (end["seconds"] - in_parts) / steps
    whole = run["settings"]["num_train_epochs"] * run["steps_per_epoch"] * a_step
    after_start = wall - start
    shares = {name: round(parts.get(name, 0.0) / after_start, 4) for name in PARTS}
    shares["end"] = round((after_start - end["seconds"]) / after_start, 4)
    others = 1 - steps * a_step / after_start
    start_of_whole = start / (start + whole / (steps * a_step) * after_start)
    estimates = () if estimate is None else (estimate, start + run["expected_seconds"])
    return {
        OTHERS: round(others, 4),
        START: round(start_of_whole, 4),
        TOGETHER: round(start_of_whole + (1 - start_of_whole) * others, 4),
        **{name: round(max(of / wall, wall / of), 4) for name, of in zip(ESTIMATES, estimates, strict=False)},
        "seconds that the dry run expected": estimate,
        "shares": shares,
        "start_seconds": round(start, 1),
        "seconds_expected_after_the_start": run["expected_seconds"],
        "steps": steps,
        "evaluation points": sum(row["event"] == "evaluation" for row in history),
    }

"""The part of a training run that goes into anything but its steps, for texts of 20 KB to 1 GB and no further flags.

Every run is the command that users type, in a process of its own. All but the shortest are bounded by `--minutes`, so
that they end: what their starts are of a run with the default epochs is told by the time of their steps.
"""

import json
import shutil
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

SIZES = {"20 KB": 20_000, "1 MB": 10**6, "10 MB": 10**7, "100 MB": 10**8, "1 GB": 10**9}
WHOLE = "20 KB"  # the one that runs to its end
LIMIT = 0.10
PARTS = ("evaluations", "samples", "checkpoints")


class Shares(Benchmark):
    """Default runs on texts of Python's own source, in random stretches."""

    help = "the part of a default run that evaluations, samples, checkpoints, start and end take, by the text's size"
    packages = ("torch", "transformers", "accelerate", "tiktoken")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add `--sizes`, `--minutes` and `--dir`."""
        parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all of them")
        parser.add_argument(
            "--minutes", type=number(float, 0), default=3.0, help="of each run but the shortest (default: 3)"
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
            describe_limit(f"{size}: {what}", [sample.details[what] for sample in results[size]], "at most", LIMIT)
            for size in results
            for what in ("evaluations, samples, checkpoints and end", "start, of a whole run")
        ]
        yield build_report("shares", f"default runs, {', '.join(results)} of text", machine, results, limits=limits)


def sampler(size: str, root: Path, minutes: float, threads: int) -> Callable[[], Measurement]:
    """Write a text of a size, and return what measures a run on it."""
    text = root / f"{size.replace(' ', '-')}.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(documents(SIZES[size]))
    bound = [] if size == WHOLE else ["--minutes", minutes, "--choose", "none"]
    return partial(measure_run, text, root / "output", bound, threads)


def measure_run(text: Path, output: Path, bound: list[Any], threads: int) -> Measurement:
    """Measure a run and its parts, and remove its output."""
    command = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, SCRIPTS / "train.py", "--train_file", text]
    measured = measure([str(word) for word in (*command, "--output_dir", output, *bound)])
    history = [json.loads(line) for line in (output / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(output)
    return replace(measured, details=describe_run(history, measured.wall))


def describe_run(history: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    """Return the parts of a run's wall time after its start, and what the start is of a run of the default epochs."""
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
    return {
        "evaluations, samples, checkpoints and end": round(1 - steps * a_step / after_start, 4),
        "start, of a whole run": round(start / (start + whole / (steps * a_step) * after_start), 4),
        "shares": shares,
        "start_seconds": round(start, 1),
        "seconds_expected_after_the_start": run["expected_seconds"],
        "steps": steps,
        "evaluation points": sum(row["event"] == "evaluation" for row in history),
    }

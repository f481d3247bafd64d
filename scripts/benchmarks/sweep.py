"""Sweeps: trainings of a number of minutes with many settings, from which the rules of `--minutes` are fitted.

Every run is the command that users type, on one thread, as many at once as there are threads. Each model is scored by
its bits per byte on the same part of the text, which vocabularies of any size share. With `--chosen` the settings that
`--minutes` chooses by itself run beside them.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.runtime.cli import number

from .benchmark import Benchmark
from .growth import SCRIPTS
from .measuring import Measurement, Results, build_report, describe_limit, measure


if TYPE_CHECKING:
    import argparse

CHOSEN = "chosen"
WITHIN = 1.02  # of the best loss that the sweep finds
PARTS, MOST_HELD_OUT = 20, 120_000  # stretches of the text, and characters that are held out of all of them at most
# Nothing but steps and short evaluations; and what all settings of a sweep have in common.
QUIET = ("--use_cpu", "--sample_tokens", 0, "--save_steps", 0, "--eval_iter", 8)
COMMON = (
    *("--optim", "muon", "--muon_momentum", 0.9, "--lr_scheduler_type", "linear"),
    *("--min_learning_rate", 0, "--choose", "none"),
)


class Sweep(Benchmark):
    """Settings beside each other, for one text and one number of minutes."""

    help = "trainings with many settings in the same minutes, to fit what --minutes chooses"
    packages = ("torch", "transformers", "accelerate")
    needs = ("text", "settings")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add the text, the minutes and the settings."""
        parser.add_argument("--text", type=Path, metavar="FILE", help="text to train on and to score")
        parser.add_argument("--minutes", type=number(float, 0), default=1.0, help="of each run (default: 1)")
        parser.add_argument(
            "--settings",
            nargs="+",
            metavar="WORDS",
            help='each "VOCABULARY LAYERSxWIDTH CONTEXT BATCH RATE DROPOUT", such as "4096 2x96 64 12 2e-2 0": tokens '
            "of a vocabulary of the text's own, or bytes or gpt2",
        )
        parser.add_argument("--chosen", action="store_true", help="add the run whose settings --minutes chooses")

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Train and score with each of the settings; ValueError: a run fails, or the words are not settings."""
        machine = self.describe_machine(arguments)
        names = [*arguments.settings, *([CHOSEN] if arguments.chosen else [])]
        with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as name:
            folder = Path(name)
            split(arguments.text, folder)
            flags = {one: () if one == CHOSEN else flags_of(one, folder) for one in names}
            with ThreadPoolExecutor(arguments.threads) as pool:
                runs = pool.map(lambda one: train_and_score(one, flags[one], arguments.minutes, folder), names)
                results: Results = {one: [run] for one, run in zip(names, runs, strict=True)}
        losses = {one: samples[0].details["bits per byte"] for one, samples in results.items()}
        limits = []
        if arguments.chosen:
            best = min(losses[one] for one in arguments.settings)
            limits = [describe_limit("bits per byte, chosen / best", [losses[CHOSEN] / best], "at most", WITHIN)]
        setting = f"{arguments.text.name}, {arguments.text.stat().st_size:,} bytes, {arguments.minutes:g} minutes"
        yield build_report("sweep", setting, machine, results, limits=limits)


def split(text: Path, folder: Path) -> None:
    """Write the text but for the end of each of its stretches, and these ends together."""
    whole = text.read_text(encoding="utf-8")
    length = -(-len(whole) // PARTS)
    stretches = [whole[start : start + length] for start in range(0, len(whole), length)]
    held_out = max(1, min(length // 10, MOST_HELD_OUT // PARTS))
    (folder / "train.txt").write_text("".join(one[:-held_out] for one in stretches), encoding="utf-8")
    (folder / "held_out.txt").write_text("".join(one[-held_out:] for one in stretches), encoding="utf-8")


def flags_of(words: str, folder: Path) -> tuple[Any, ...]:
    """Return the flags of settings, and make their vocabulary.

    Raises:
        ValueError: they are not six words, or the vocabulary cannot be made.
    """
    try:
        vocabulary, shape, context, batch, rate, dropout = words.split()
        layers, width = map(int, shape.split("x"))
    except ValueError:
        raise ValueError(f"--settings {words!r} are not six words such as '4096 2x96 64 12 2e-2 0'") from None
    if vocabulary.isdigit():
        made, source = folder / vocabulary, folder / "train.txt"
        if not made.exists():
            script = [sys.executable, SCRIPTS / "train_tokenizer.py"]
            measure([*script, "--source", source, "--vocab_size", vocabulary, "--output", made])
        vocabulary = str(made)
    model = ("--vocabulary", vocabulary, "--num_hidden_layers", layers, "--hidden_size", width)
    heads = max(1, width // 32)
    shape_flags = ("--num_attention_heads", heads, "--max_position_embeddings", context)
    return (
        *model, *shape_flags, "--per_device_train_batch_size", batch, "--learning_rate", rate, "--dropout", dropout,
        *COMMON,
    )  # fmt: skip


def train_and_score(name: str, flags: tuple[Any, ...], minutes: float, folder: Path) -> Measurement:
    """Measure a training on one thread, and score its model."""
    output = folder / f"run-{name}"
    texts = ("--train_file", folder / "train.txt", "--validation_file", folder / "held_out.txt")
    command = ["env", "OMP_NUM_THREADS=1", sys.executable, SCRIPTS / "train.py", *texts, *QUIET, *flags]
    measured = measure([str(word) for word in (*command, "--minutes", minutes, "--output_dir", output)])
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    run = next(row for row in rows if row["event"] == "run")
    steps = [row for row in rows if row["event"] == "step"]
    scored = subprocess.run(
        [sys.executable, SCRIPTS / "evaluate.py", "--model", output / "model", "--file", folder / "held_out.txt"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if scored.returncode:
        raise ValueError(f"{name} cannot be scored: {scored.stderr.strip().rpartition(chr(10))[2]}")
    bits = float(scored.stdout.partition("bits per byte ")[2].split()[0].rstrip(","))
    details = {
        "bits per byte": round(bits, 4),
        "epochs": round(len(steps) / run["steps_per_epoch"], 2),
        "parameters": run["parameters"],
        "peak GFLOP/s": round(run["peak_flops"] / 1e9),
    }
    return replace(measured, details=details)

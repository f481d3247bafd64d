"""Time to a loss: whole training commands of this project and of nanoGPT, their models scored by the same code.

Both train on the first nine tenths of the characters of a text. Each round has a seed of its own: nanoGPT trains by
its published recipe for a CPU, then this project for as many minutes, and for the part of them that should be enough
for nanoGPT's loss. Wall times are those of the commands, with their imports, evaluations and results. All models are
scored by `scoring.py` on the whole last tenth, in the same windows.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .benchmark import Benchmark
from .measuring import Measurement, Results, build_report, describe_limit, measure, ratios


if TYPE_CHECKING:
    import argparse

SCRIPTS = Path(__file__).resolve().parents[1]
NANOGPT, OURS, OURS_SHORT = "nanoGPT", "ours, as long", "ours, 0.35 of it"
PART_OF_TIME, LOWEST_LOSS = 0.35, 1.60
AIMED_AT = 0.985  # of the allowed time: runs end within a few percent of their `--minutes`
CONTEXT = 64
# nanoGPT's README, "I only have a macbook".
RECIPE = {
    "device": "cpu",
    "compile": "False",
    "eval_iters": "20",
    "log_interval": "1",
    "block_size": str(CONTEXT),
    "batch_size": "12",
    "n_layer": "4",
    "n_head": "4",
    "n_embd": "128",
    "max_iters": "2000",
    "lr_decay_iters": "2000",
    "dropout": "0.0",
}
SEED_LINE = "torch.manual_seed(1337 + seed_offset)"  # nanoGPT has no option for it
# No more parameters than nanoGPT's model, which has a row for each of 65 characters and no biases.
OURS_FLAGS = {
    "vocabulary": "bytes",
    "hidden_size": "128",
    "num_hidden_layers": "3",
    "num_attention_heads": "4",
    "max_position_embeddings": str(CONTEXT),
    "per_device_train_batch_size": "12",
    "dropout": "0",
    "optim": "muon",
    "muon_momentum": "0.9",
    "learning_rate": "2e-2",
    "min_learning_rate": "0",
    "lr_scheduler_type": "linear",
    "warmup_steps": "30",
    "save_steps": "0",
    "sample_tokens": "0",
    "choose": "none",
    "use_cpu": "true",
}


def prepare_nanogpt(source: Path, text: Path, folder: Path) -> Path:
    """Copy nanoGPT, and have it prepare the text.

    Raises:
        ValueError: it is another nanoGPT, or its script fails.
    """
    copied = folder / "nanoGPT"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns(".git"))
    script = copied / "train.py"
    if not script.is_file() or script.read_text(encoding="utf-8").count(SEED_LINE) != 1:
        raise ValueError(f"{source} is not nanoGPT as it is known here: its train.py has no line {SEED_LINE!r}")
    data = copied / "data" / "shakespeare_char"
    shutil.copy(text, data / "input.txt")
    measure([sys.executable, data / "prepare.py"])
    return copied


def train_nanogpt(copied: Path, seed: int, threads: int, recipe: dict[str, str] = RECIPE) -> Measurement:
    """Run nanoGPT's recipe, and convert the checkpoint for scoring, which is not timed.

    Args:
        copied: folder of `prepare_nanogpt`.
        seed: of the run.
        threads: of PyTorch.
        recipe: options beside those of nanoGPT's own file for this text.
    """
    measurement = run_nanogpt(copied, seed, threads, recipe)
    checkpoint, model = copied / f"out-{seed}" / "ckpt.pt", copied / f"model-{seed}"
    measure([sys.executable, SCRIPTS / "convert_gpt2.py", "--from_dir", checkpoint, "--output", model])
    return measurement


def run_nanogpt(copied: Path, seed: int, threads: int, recipe: dict[str, str]) -> Measurement:
    """Run nanoGPT's recipe into `out-SEED`, what it prints into a file `log` there, with nothing compiled before."""
    script, out = copied / "train.py", copied / f"out-{seed}"
    out.mkdir()
    seeded = copied / "train_seeded.py"
    seeded.write_text(script.read_text(encoding="utf-8").replace(SEED_LINE, f"torch.manual_seed({seed})"), "utf-8")
    options = [f"--{name}={value}" for name, value in (recipe | {"out_dir": out.name}).items()]
    command = ["env", "-C", copied, f"OMP_NUM_THREADS={threads}", f"TORCHINDUCTOR_CACHE_DIR={out / 'compiled'}"]
    command += ["PYTHONUNBUFFERED=1", "sh", "-c", 'log=$1; shift; exec "$@" >"$log"', "sh", out / "log"]
    return measure([*command, sys.executable, seeded.name, "config/train_shakespeare_char.py", *options])


def train_ours(
    text: Path, output: Path, minutes: float, seed: int, threads: int, given: dict[str, str] = OURS_FLAGS
) -> Measurement:
    """Run our training script for so many minutes, or the steps that are given, with the other flags given."""
    bound = {} if "max_steps" in given else {"minutes": f"{minutes:.4f}"}
    flags = given | bound | {"seed": str(seed), "output_dir": str(output)}
    options = [item for name, value in flags.items() for item in (f"--{name}", value)]
    command = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, SCRIPTS / "train.py"]
    return measure([*command, "--train_file", text, *options])


def with_score(
    measurement: Measurement, model: Path, text: Path, unit: str, context: int = CONTEXT, python: Path | None = None
) -> Measurement:
    """Add the loss of a model on the last tenth of a text, and its parameters, by a process of its own.

    Args:
        measurement: of its training.
        model: its folder.
        text: whose first nine tenths it was trained on.
        unit: of its token ids: "bytes", "gpt2", or "characters" as nanoGPT numbers them.
        context: tokens of a window.
        python: that has what the model needs; None: this one.

    Raises:
        ValueError: it cannot be scored.
    """
    command = [python or sys.executable, "-m", f"{__package__}.scoring", str(model), str(text), unit, str(context)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent)
    if process.returncode:
        raise ValueError(f"{model} cannot be scored: {process.stderr.strip().rpartition(chr(10))[2]}")
    return replace(measurement, details=json.loads(process.stdout.splitlines()[-1]))


class TimeToLoss(Benchmark):
    """Seeds of whole trainings."""

    help = "whole trainings against nanoGPT's recipe: loss in the same time, time for the same loss"
    packages = ("torch", "transformers", "accelerate")
    needs = ("nanogpt", "text")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add the text."""
        parser.add_argument("--text", type=Path, metavar="FILE", help="text to train on, such as Tiny Shakespeare")

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Train and score with a seed for each round.

        Yields:
            The report.

        Raises:
            ValueError: nanoGPT is another one, or a candidate fails.
        """
        machine = self.describe_machine(arguments)
        results: Results = {NANOGPT: [], OURS: [], OURS_SHORT: []}
        text, threads = arguments.text.resolve(), arguments.threads
        with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as name:
            folder = Path(name)
            copied = prepare_nanogpt(arguments.nanogpt, text, folder)
            for seed in range(1, arguments.rounds + 1):
                peer = train_nanogpt(copied, seed, threads)
                results[NANOGPT].append(with_score(peer, copied / f"model-{seed}", text, "characters"))
                for part, candidate in ((1.0, OURS), (PART_OF_TIME, OURS_SHORT)):
                    output = folder / f"{candidate}-{seed}"
                    ours = train_ours(text, output, AIMED_AT * part * peer.wall / 60, seed, threads)
                    results[candidate].append(with_score(ours, output / "model", text, "bytes"))
        refuse_larger_model(results)
        setting = f"{text.name}, context {CONTEXT}, {arguments.rounds} seeds"
        yield build_report("time_to_loss", setting, machine, results, limits=list(limits(results)))


def refuse_larger_model(results: Results, ours: str = OURS) -> None:
    """Raise ValueError if the model of `ours` has more parameters than another, or was scored on other tokens."""
    reference = results[ours][-1].details
    for name, samples in results.items():
        other = samples[-1].details
        if reference["parameters"] > other["parameters"] or reference["scored tokens"] != other["scored tokens"]:
            raise ValueError(f"another task: {ours} {reference}, {name} {other}")


def limits(results: Results) -> Iterator[dict[str, Any]]:
    """Yield our loss in nanoGPT's time, and our time and loss where the time is the part that should be enough."""
    losses = {name: [sample.details["loss"] for sample in samples] for name, samples in results.items()}
    yield describe_limit("loss in nanoGPT's wall time", losses[OURS], "at most", LOWEST_LOSS)
    yield describe_limit("its wall time / nanoGPT's", ratios(results, "wall", OURS, NANOGPT), "at most", 1.0)
    behind = [ours - peer for ours, peer in zip(losses[OURS_SHORT], losses[NANOGPT], strict=True)]
    text = f"loss in {PART_OF_TIME} of the time - nanoGPT's"
    yield describe_limit(text, behind, "at most", 0.0)
    text, values = "its wall time / nanoGPT's, short", ratios(results, "wall", OURS_SHORT, NANOGPT)
    yield describe_limit(text, values, "at most", PART_OF_TIME)

"""Growth of time and memory with the data: training, preparation, evaluation and conversion of 1, 10 and 100 times.

Every run is the command that users type, in a process of its own. The cost of its start is measured by a run on nearly
nothing, and subtracted. Flat means: a unit of 100 times the data takes no more time than one of 10 times (where noise
of the start counts less than at 1 time), and the process no more memory than with 1 time.
"""

import json
import math
import random
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.conversion.gpt2_sizes import GPT2Size
from hf_gpt_scratch.runtime.cli import number

from .benchmark import Benchmark
from .conversion import make_checkpoint, measure_writer
from .measuring import Measurement, build_report, describe_limit, interleave, measure, spread


if TYPE_CHECKING:
    import argparse

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FACTORS = (1, 10, 100)
NOTHING = 0  # the factor of the run that is subtracted
LIMIT = 1.1
FEW_BYTES = 2000

# So small that the least data fills one: what is in memory is the shard that is being filled.
SHARD_TOKENS = 1 << 17
MODEL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
TRAINING = ["--num_train_epochs", 1, "--per_device_train_batch_size", 4, "--use_cpu", "--sample_tokens", 0]
# As often as there are steps at 1 time, so that the longer runs have more of them.
TRAINING += ["--eval_steps", 4, "--eval_iter", 1, "--save_steps", 4, "--dropout", 0]

MAKE_MODEL = """
import json, sys
from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.hub.repository import build_repository
from hf_gpt_scratch.data.tokenizer import build_tokenizer
special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 256)
config = GPTScratchConfig(**json.loads(sys.argv[1]), vocab_size=257, **special)
tokenizer = build_tokenizer(config.max_position_embeddings, "bytes")
build_repository(GPTScratchForCausalLM(config), sys.argv[2], tokenizer=tokenizer)
"""
MAKE_CHECKPOINTS = """
import sys
from scripts.benchmarks.growth import make_checkpoint_of
for folder, num_bytes in zip(sys.argv[1::2], sys.argv[2::2]):
    make_checkpoint_of(folder, int(num_bytes))
"""
Make = Callable[[dict[Path, int]], dict[Path, float]]


@dataclass(frozen=True)
class Task:
    """A command whose cost must not grow faster than its data.

    `make` fills folders with about the given number of bytes, and returns the number of units in each. `command`
    works on such a folder, and writes to a path that does not exist; the number is that of threads.
    """

    unit: str
    num_bytes: int  # of 1 time
    make: Make
    command: Callable[[Path, Path, int], list[Any]]


def documents(num_bytes: int) -> Iterator[str]:
    """Yield texts of about `num_bytes` in all: stretches of Python's own source, the same for the same Python."""
    draws = random.Random(123)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    sources = [path.read_text(encoding="utf-8", errors="replace").splitlines() for path in files]
    done = 0
    while done < num_bytes:
        lines = draws.choice(sources)
        first = draws.randrange(len(lines) + 1)
        text = f"Document {draws.random()}\n" + "\n".join(lines[first : first + draws.randrange(20, 400)])
        text = text[: num_bytes - done]
        done += len(text.encode())
        yield text


def make_json_lines(folders: dict[Path, int]) -> dict[Path, float]:
    """Write documents as JSON lines; a unit is a megabyte of their text."""
    for folder, num_bytes in folders.items():
        with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents(num_bytes))
    return {folder: num_bytes / 1e6 for folder, num_bytes in folders.items()}


def make_shards(folders: dict[Path, int]) -> dict[Path, float]:
    """Prepare documents for training, and write a text to validate on; a unit is a thousand tokens."""
    make_json_lines(folders)
    amounts = {}
    for folder in folders:
        measure([str(item) for item in prepare_command(folder, folder / "tokens", 1)])
        (folder / "validation.txt").write_text("\n".join(documents(FEW_BYTES)), encoding="utf-8")
        index = json.loads((folder / "tokens" / "index.json").read_text(encoding="utf-8"))
        amounts[folder] = index["splits"]["train"]["num_tokens"] / 1e3
    return amounts


def make_texts(folders: dict[Path, int]) -> dict[Path, float]:
    """Write one text each and a model of bytes, the fastest, to evaluate; a unit is a megabyte."""
    for folder, num_bytes in folders.items():
        (folder / "text.txt").write_text("".join(documents(num_bytes)), encoding="utf-8")
        measure([sys.executable, "-c", MAKE_MODEL, json.dumps(MODEL), folder / "model"])
    return {folder: (folder / "text.txt").stat().st_size / 1e6 for folder in folders}


def make_checkpoints(folders: dict[Path, int]) -> dict[Path, float]:
    """Have TensorFlow write checkpoints; a unit is a megabyte."""
    measure([sys.executable, "-c", MAKE_CHECKPOINTS, *(one for pair in folders.items() for one in map(str, pair))])
    return {folder: sum(file.stat().st_size for file in folder.iterdir()) / 1e6 for folder in folders}


def make_checkpoint_of(folder: str, num_bytes: int) -> None:
    """Write a checkpoint of two blocks, wide enough to have about `num_bytes`."""
    # 51281 rows of embeddings, and 24 squares of weights in two blocks.
    width = (math.sqrt(51281**2 + 4 * 24 * num_bytes / 4) - 51281) / 48
    make_checkpoint(Path(folder), GPT2Size("growing", max(1, round(width)), 2, 1, num_bytes // 4, files={}))


def prepare_command(data: Path, output: Path, threads: int) -> list[Any]:
    """Return the command from text to shards."""
    sizes = ["--shard_tokens", SHARD_TOKENS, "--num_workers", threads]
    return [sys.executable, SCRIPTS / "prepare_data.py", "--source", data / "text.jsonl", "--output", output, *sizes]


def train_command(data: Path, output: Path, threads: int) -> list[Any]:
    """Return the command of one pass over the shards."""
    files = ["--train_data", data / "tokens", "--validation_file", data / "validation.txt", "--output_dir", output]
    sizes = [item for name, value in MODEL.items() for item in (f"--{name}", value)]
    return [sys.executable, SCRIPTS / "train.py", *files, *sizes, *TRAINING]


def evaluate_command(data: Path, output: Path, threads: int) -> list[Any]:
    """Return the command of the loss on a text."""
    return [sys.executable, SCRIPTS / "evaluate.py", "--model", data / "model", "--file", data / "text.txt"]


def convert_command(data: Path, output: Path, threads: int) -> list[Any]:
    """Return the command from checkpoint to repository folder, every checksum verified."""
    return [sys.executable, SCRIPTS / "convert_gpt2.py", "--from_dir", data, "--output", output, "--no_verify"]


TASKS = {
    "train": Task("1000 tokens", 5_000, make_shards, train_command),
    "prepare": Task("1 MB of text", 1_000_000, make_json_lines, prepare_command),
    "evaluate": Task("1 MB of text", 20_000, make_texts, evaluate_command),
    "convert": Task("1 MB of checkpoint", 12_000_000, make_checkpoints, convert_command),
}


class Growth(Benchmark):
    """Every command on nearly nothing and on 1, 10 and 100 times the data, in turn."""

    help = "time and memory of training, preparation, evaluation and conversion at 1, 10 and 100 times the data"
    packages = ("torch", "transformers", "tiktoken", "tokenizers", "numpy", "safetensors", "tensorflow")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add `--tasks`, `--scale` and `--dir`."""
        parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all of them")
        parser.add_argument(
            "--scale", type=number(float, 1e-6), default=1.0, help="factor on all data, for a short try (default: 1)"
        )
        parser.add_argument("--dir", type=Path, help="disk to work on; 2 GB must fit")

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Run each task; ValueError: a command fails, TensorFlow is missing, or an option is wrong."""
        for name in arguments.tasks:
            task, machine = TASKS[name], self.describe_machine(arguments)
            with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="hf_gpt_scratch-") as folder:
                samples, amounts = run_task(task, Path(folder), arguments)
            growth = describe_growth(task.unit, samples, amounts)
            sizes = ", ".join(f"{units:,.2f}" for units in growth["units"])
            yield build_report(
                "growth",
                f"{name}, {sizes} times {task.unit}",
                machine,
                {f"{name}, {factor} x": samples[factor] for factor in samples},
                part=name,
                growth=growth,
                limits=describe_limits(growth),
            )


def run_task(
    task: Task, root: Path, arguments: "argparse.Namespace"
) -> tuple[dict[int, list[Measurement]], dict[int, float]]:
    """Return samples and units of data for every factor."""
    folders = {factor: root / str(factor) for factor in (NOTHING, *FACTORS)}
    sizes = {factor: FEW_BYTES + int(factor * arguments.scale * task.num_bytes) for factor in folders}
    for folder in folders.values():
        folder.mkdir()
    amounts = task.make({folders[factor]: sizes[factor] for factor in folders})
    output = root / "output"

    def sampler(folder: Path) -> Callable[[], Measurement]:
        threads = f"OMP_NUM_THREADS={arguments.threads}"
        command = ["env", threads, *map(str, task.command(folder, output, arguments.threads))]
        return partial(measure_writer, command, output)

    samplers = {factor: sampler(folder) for factor, folder in folders.items()}
    samplers[NOTHING]()  # not counted: it compiles our modules
    return interleave(samplers, arguments.rounds), {factor: amounts[folders[factor]] for factor in folders}


def describe_growth(unit: str, samples: dict[int, list[Measurement]], amounts: dict[int, float]) -> dict[str, Any]:
    """Return the cost of a unit at every factor, by round, and its spread; seconds without the start, MiB with it."""
    rounds, points = [], []
    for factor in FACTORS:
        units = amounts[factor] - amounts[NOTHING]
        values: dict[str, list[float]] = {"memory": [sample.memory for sample in samples[factor]]}
        for figure in ("cpu", "wall"):
            pairs = zip(samples[factor], samples[NOTHING], strict=True)
            values[figure] = [(getattr(one, figure) - getattr(start, figure)) / units for one, start in pairs]
        rounds.append(values)
        points.append({figure: spread(each) for figure, each in values.items()})
    all_units = [amounts[factor] for factor in FACTORS]
    return {"unit": unit, "factors": FACTORS, "units": all_units, "points": points, "rounds": rounds}


def describe_limits(growth: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the limits; ratios are taken within a round, and their median decides.

    Data that take no longer than the start are not measured: the ratio is infinite, and meets no limit.
    """
    limits = []
    for figure, text, first in (("wall", "wall time", -2), ("cpu", "CPU time", -2), ("memory", "peak memory", 0)):
        pairs = zip(growth["rounds"][-1][figure], growth["rounds"][first][figure], strict=True)
        values = [more / less if min(more, less) > 0 else math.inf for more, less in pairs]
        what = text if figure == "memory" else f"{text} of {growth['unit']}"
        sides = f"{FACTORS[-1]} x / {FACTORS[first]} x"
        limits.append(describe_limit(f"{what}, {sides}", values, "at most", LIMIT))
    return limits

"""Loading a model against reading its file, and the start of a training run against importing what it needs.

Loading is measured in processes that have imported everything, with the file in the system's cache. Weights that are
mapped into memory cost nothing until they are used, so each way to load also takes part with all its values summed.
A run has started when its history has the first evaluation, the last thing before its first step.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measuring import (
    Measurement,
    Results,
    build_report,
    compare,
    describe_limit,
    describe_machine,
    interleave,
    measure,
    ratios,
)
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

    import torch

HELP = "from_pretrained against reading the file, and the start of train.py against its imports"
KEY_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
TRAIN = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
LOAD_LIMIT, START_LIMIT = 1.5, 1.3
READ, OURS, REMOTE, LOADER = "reading the file", "from_pretrained", "with trust_remote_code", "our scripts' loader"
TOUCHED = ", all values summed"

# The settings of scripts/train.py that make the model, and the fields of its config.
MODELS: dict[str, dict[str, int]] = {
    "small": {  # the default of scripts/train.py
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": 128,
    },
    "124M": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
    },
    "tiny": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8},
}
# One short window, so that a step and the look at the losses before it take next to nothing.
FIRST_STEP = {"max_steps": 1, "warmup_steps": 0, "initial_eval_iter": 1, "per_device_train_batch_size": 1}
IMPORTS = """
import json, sys
import torch, transformers, accelerate
from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
GPTScratchForCausalLM(GPTScratchConfig(**json.loads(sys.argv[1])))
"""
MAKE_FOLDERS = """
import json, sys
from pathlib import Path
from scripts.benchmarks.loading import make_folders
make_folders(Path(sys.argv[1]), json.loads(sys.argv[2]))
"""


def make_folders(folder: Path, fields: dict[str, int]) -> None:
    """Write a model with drawn weights as our folder and as transformers' GPT-2."""
    from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
    from hf_gpt_scratch import registration as registration
    from hf_gpt_scratch.conversion.export import export_stock
    from hf_gpt_scratch.hub.repository import build_repository

    model = GPTScratchForCausalLM(GPTScratchConfig(**fields))
    build_repository(model, folder / "ours")
    export_stock(folder / "ours", folder / "stock", verify=False)


def make_loader(way: str, folder: str, touch: bool) -> Callable[[], Callable[[], dict[str, Any]]]:
    """One of the `WAYS` to load; the sum of all weights is part of the work if `touch`."""
    load = WAYS[way](Path(folder))

    def work() -> Callable[[], dict[str, Any]]:
        tensors = load()
        total = sum_of(tensors) if touch else None
        return lambda: {"sum": sum_of(tensors) if total is None else total}

    return work


def sum_of(tensors: "list[torch.Tensor]") -> float:
    """Sum of all values in float64, to the digits that do not depend on the order."""
    import torch

    return round(sum(tensor.sum(dtype=torch.float64).item() for tensor in tensors), 6)


def reading(folder: Path) -> "Callable[[], list[torch.Tensor]]":
    """The bytes of the file into memory, and nothing else; after its header they are numbers."""
    import torch

    path = folder / "ours" / "model.safetensors"

    def load() -> list[torch.Tensor]:
        content = path.read_bytes()  # a third faster than into a buffer of zeros; PyTorch warns that it is read-only
        return [torch.frombuffer(content, dtype=torch.float32, offset=8 + int.from_bytes(content[:8], "little"))]

    return load


def safetensors_loading(folder: Path) -> "Callable[[], list[torch.Tensor]]":
    """Safetensors' own load_file, without a model around it."""
    from safetensors.torch import load_file

    return lambda: list(load_file(folder / "ours" / "model.safetensors").values())


def from_pretrained(folder: Path) -> "Callable[[], list[torch.Tensor]]":
    """Our class, from this package."""
    from hf_gpt_scratch import GPTScratchForCausalLM

    return lambda: list(GPTScratchForCausalLM.from_pretrained(folder / "ours").parameters())


def remote_code(folder: Path) -> "Callable[[], list[torch.Tensor]]":
    """The folder's own code, as where this package is not installed."""
    from transformers import AutoModelForCausalLM

    os.environ["HF_MODULES_CACHE"] = str(folder / "modules")
    return lambda: list(AutoModelForCausalLM.from_pretrained(folder / "ours", trust_remote_code=True).parameters())


def scripts_loader(folder: Path) -> "Callable[[], list[torch.Tensor]]":
    """What evaluate.py and generate.py do: model and tokenizer, complete or refused."""
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

    return lambda: list(load_model_and_tokenizer(str(folder / "ours"))[0].parameters())


def stock(folder: Path) -> "Callable[[], list[torch.Tensor]]":
    """Transformers' GPT-2 with the same weights."""
    from transformers import GPT2LMHeadModel

    return lambda: list(GPT2LMHeadModel.from_pretrained(folder / "stock").parameters())


WAYS: dict[str, Callable[[Path], Any]] = {
    OURS: from_pretrained,
    REMOTE: remote_code,
    LOADER: scripts_loader,
    "transformers' GPT-2": stock,
    "safetensors' load_file": safetensors_loading,
    READ: reading,
}


def time_of_start(command: list[Any], output: Path) -> Measurement:
    """Start a run, wait for the first evaluation in its history, and end it.

    Raises:
        ValueError: it ended by itself before.
    """
    history = output / "history.jsonl"
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen([*map(str, command), "--output_dir", str(output)], stdout=errors, stderr=errors)
        while not (history.is_file() and '"evaluation"' in history.read_text(encoding="utf-8")):
            if process.poll() is not None:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise ValueError(f"{command[1]} failed with exit code {process.returncode}: {last}")
            time.sleep(0.002)
        wall = time.perf_counter() - start
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return Measurement(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def measure_starts(folder: Path, fields: dict[str, int], rounds: int) -> Results:
    """train.py up to its first step, and a process that imports the libraries and builds the same model."""
    flags = [f"--{name}={value}" for name, value in (fields | FIRST_STEP).items()]
    flags.append(f"--block_size={min(64, fields.get('max_position_embeddings', 64))}")
    count = iter(range(2 * rounds + 1))
    samplers = {
        "start of train.py": lambda: time_of_start([sys.executable, TRAIN, *flags], folder / f"run-{next(count)}"),
        "imports and a model": lambda: measure([sys.executable, "-c", IMPORTS, json.dumps(fields)]),
    }
    samplers["start of train.py"]()  # not counted: it compiles our modules
    return interleave(samplers, rounds)


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Options of this benchmark alone."""
    parser.add_argument("--size", choices=MODELS, default="124M", help="model, with drawn weights (default: 124M)")


def refuse_other_work(results: Results) -> None:
    """Raise ValueError if the values that one has loaded have another sum."""
    sums = {name: samples[-1].details["sum"] for name, samples in results.items()}
    if max(sums.values()) - min(sums.values()) > 1e-3:
        raise ValueError(f"the values do not have the same sum: {sums}")


def run(arguments: "argparse.Namespace") -> list[dict[str, Any]]:
    """Run all candidates in turn on a model that is made for it.

    Returns:
        All figures of loading and of starting, ready for JSON.

    Raises:
        ValueError: a candidate fails or loads other values, or an option is wrong.
    """
    fields, rounds, threads = MODELS[arguments.size], arguments.rounds, arguments.threads
    machines = [describe_machine(KEY_PACKAGES, threads) for _ in range(2)]
    with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as name:
        measure([sys.executable, "-c", MAKE_FOLDERS, name, json.dumps(fields)])
        candidates = [
            Candidate(way + TOUCHED * touch, f"{__name__}:make_loader", {"way": way, "folder": name, "touch": touch})
            for touch in (False, True)
            for way in WAYS
        ]
        loads = run_workers(candidates, rounds, threads)
        refuse_other_work(loads)
        starts = measure_starts(Path(name), fields, rounds)
    pairs = [(way + end, READ + end) for end in ("", TOUCHED) for way in (OURS, REMOTE, LOADER)]
    start, imports = starts
    return [
        build_report(
            "load",
            arguments.size,
            machines[0],
            loads,
            part="weights",
            comparisons=compare(loads, "wall", OURS),
            limits=[
                describe_limit(f"wall time, {one} / {other}", ratios(loads, "wall", one, other), "at most", LOAD_LIMIT)
                for one, other in pairs
            ],
        ),
        build_report(
            "load",
            f"{arguments.size}, start",
            machines[1],
            starts,
            part="start",
            comparisons=compare(starts, "wall", start),
            limits=[
                describe_limit(
                    f"wall time, {start} / {imports}", ratios(starts, "wall", start, imports), "at most", START_LIMIT
                )
            ],
        ),
    ]

"""The converter timed against its peers: TensorFlow's reader, the tutorial's loading path and a plain copy.

Every run is a process of its own. This module imports no more than it must, because the contestants import it too.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.conversion.gpt2_sizes import HPARAMS_FILE, GPT2Size, find_size


if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    Block = dict[str, np.ndarray]

KEY_PACKAGES = ("numpy", "google-crc32c", "safetensors", "torch", "tensorflow", "tensorflow-cpu")
PREFIX = "model.ckpt"
TINY = GPT2Size("tiny", 32, 2, 4, 1666464, files={})  # for trying the benchmark itself
RUN_CONTESTANT = """
import sys
from pathlib import Path
from hf_gpt_scratch.benchmarks.conversion import CONTESTANTS
CONTESTANTS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
"""
MAKE_CHECKPOINT = """
import sys
from pathlib import Path
from hf_gpt_scratch.benchmarks.conversion import choose_size, make_checkpoint
make_checkpoint(Path(sys.argv[2]), choose_size(sys.argv[1]))
"""


@dataclass(frozen=True)
class Measurement:
    """What one run of a process took: seconds of CPU, seconds of wall time, peak memory in MiB."""

    cpu: float
    wall: float
    memory: float


Results = dict[str, list[Measurement]]


# Figure of `Measurement`, numerator, denominator, kind of bound, limit.
RATIO_LIMITS = (
    ("cpu", "tutorial", "ours", "at least", 10),
    ("cpu", "TensorFlow loop", "ours", "at least", 5),
    ("wall", "ours", "cp", "at most", 3),
    ("wall", "ours", "cp, flushed", "at most", 3),
)
MEMORY_LIMIT = 64  # MiB above the bare interpreter


def choose_size(name: str) -> GPT2Size:
    """A released size, or "tiny".

    Raises:
        ValueError: there is no such size.
    """
    return TINY if name == TINY.name else find_size(name)


def make_checkpoint(folder: Path, size: GPT2Size) -> None:
    """Have TensorFlow write random values under the names and in the shapes of src/model.py of openai/gpt-2.

    Raises:
        ValueError: TensorFlow is not installed.
    """
    from hf_gpt_scratch.conversion.tf_checkpoint import import_tensorflow

    tf = import_tensorflow()
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, shape in checkpoint_shapes(size).items():
            tf1.get_variable(name, shape, initializer=tf1.random_normal_initializer())
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(folder / PREFIX), write_meta_graph=False)
    (folder / HPARAMS_FILE).write_text(json.dumps(size.hparams), encoding="utf-8")


def checkpoint_shapes(size: GPT2Size) -> dict[str, tuple[int, ...]]:
    """Name and shape of every variable."""
    width = size.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model/wte": (size.hparams["n_vocab"], width),
        "model/wpe": (size.hparams["n_ctx"], width),
    }
    linears = {"attn/c_attn": (1, 3), "attn/c_proj": (1, 1), "mlp/c_fc": (1, 4), "mlp/c_proj": (4, 1)}
    blocks = [f"model/h{i}" for i in range(size.num_hidden_layers)]
    for norm in ("model/ln_f", *(f"{block}/ln_{n}" for block in blocks for n in (1, 2))):
        shapes |= {f"{norm}/g": (width,), f"{norm}/b": (width,)}
    for block in blocks:
        for name, (n_in, n_out) in linears.items():
            shapes[f"{block}/{name}/w"] = (1, n_in * width, n_out * width)
            shapes[f"{block}/{name}/b"] = (n_out * width,)
    return shapes


def convert_ours(source: Path, output: Path) -> None:
    """Checkpoint to safetensors as the command does it, every checksum verified, flushed to the disk."""
    from hf_gpt_scratch.conversion.convert import open_source, plan_conversion, tensors_to_write, unfinished_folder
    from hf_gpt_scratch.conversion.safetensors_files import write_model

    with unfinished_folder(output) as folder:
        conversion = plan_conversion(open_source(source))
        write_model(folder, tensors_to_write(conversion.plan, conversion.source.tensors), "float32", 10**12)


def convert_with_tensorflow(source: Path, output: Path) -> None:
    """A loop over TensorFlow's reader, all tensors in memory, and safetensors' own save_file."""
    import numpy as np
    from safetensors.numpy import save_file

    from hf_gpt_scratch.conversion.tf_checkpoint import import_tensorflow

    reader = import_tensorflow().train.load_checkpoint(str(source / PREFIX))
    tensors = {}
    for name in reader.get_variable_to_shape_map():
        values = reader.get_tensor(name)
        parts = np.split(values, 3, axis=-1) if "c_attn" in name else [values]
        for part, array in enumerate(parts):
            tensors[f"{name}.{part}"] = np.ascontiguousarray(array[0].T if array.ndim == 3 else array)
    output.mkdir()
    save_file(tensors, output / "model.safetensors")


def load_as_tutorial(source: Path, output: Path) -> None:
    """Chapter 5: each variable by name into a nested dict, a freshly drawn model, each array copied into it."""
    blocks, others = read_as_tutorial(source)
    layers, embeddings, masks = draw_tutorial_model(len(blocks), len(others["wpe"]), *others["wte"].shape)
    fill_tutorial_model(layers, embeddings, blocks, others)
    output.mkdir()
    if len(masks) != len(layers):
        raise RuntimeError("a layer has no mask")


def read_as_tutorial(source: Path) -> "tuple[list[Block], Block]":
    """The variables of each block, and those outside the blocks."""
    import numpy as np

    from hf_gpt_scratch.conversion.tf_checkpoint import import_tensorflow

    tf, path = import_tensorflow(), str(source / PREFIX)
    blocks: dict[int, Block] = {}
    others: Block = {}
    for name, _ in tf.train.list_variables(path):
        values = np.squeeze(tf.train.load_variable(path, name))
        first, *rest = name.removeprefix("model/").split("/")
        place = blocks.setdefault(int(first[1:]), {}) if first[1:].isdigit() else others
        place["/".join(rest or [first])] = values
    return [blocks[i] for i in sorted(blocks)], others


def draw_tutorial_model(
    num_layers: int, context: int, vocab: int, width: int
) -> "tuple[list[dict[str, nn.Linear]], dict[str, nn.Module], list[Any]]":
    """The linear maps of each layer, the embeddings and the untied head, and the causal mask of each layer."""
    import torch
    from torch import nn

    linears = (("q", 1, 1), ("k", 1, 1), ("v", 1, 1), ("attn/c_proj", 1, 1), ("mlp/c_fc", 1, 4), ("mlp/c_proj", 4, 1))
    layers = [
        {name: nn.Linear(n_in * width, n_out * width) for name, n_in, n_out in linears} for _ in range(num_layers)
    ]
    embeddings = {
        "tokens": nn.Embedding(vocab, width),
        "positions": nn.Embedding(context, width),
        "head": nn.Linear(width, vocab, bias=False),
    }
    return layers, embeddings, [torch.triu(torch.ones(context, context), diagonal=1) for _ in layers]


def fill_tutorial_model(
    layers: "list[dict[str, nn.Linear]]", embeddings: "dict[str, nn.Module]", blocks: "list[Block]", others: "Block"
) -> None:
    """Make a parameter of a copy of each array; the token embedding is copied a second time for the head."""
    import numpy as np
    import torch

    for layer, block in zip(layers, blocks, strict=True):
        for kind in "wb":
            parts = np.split(block.pop(f"attn/c_attn/{kind}"), 3, axis=-1)
            block |= {f"{letter}/{kind}": part for letter, part in zip("qkv", parts, strict=True)}
        for name, linear in layer.items():
            linear.weight = torch.nn.Parameter(torch.tensor(block[f"{name}/w"].T))
            linear.bias = torch.nn.Parameter(torch.tensor(block[f"{name}/b"]))
    for module, name in (("tokens", "wte"), ("positions", "wpe"), ("head", "wte")):
        embeddings[module].weight = torch.nn.Parameter(torch.tensor(others[name]))


CONTESTANTS: dict[str, Callable[[Path, Path], None]] = {
    "ours": convert_ours,
    "TensorFlow loop": convert_with_tensorflow,
    "tutorial": load_as_tutorial,
}


def measure(command: Sequence[str | Path]) -> Measurement:
    """Run a command in a process of its own; what it prints is not shown.

    Raises:
        ValueError: it fails; with the last line that it printed on stderr.
    """
    # Compiled modules are kept, as they are where this package is installed.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {"HF_GPT_SCRATCH_REGISTER": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile() as errors:
        start = perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for; Popen shall not do it again
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"{command[0]} failed with exit code {process.returncode}: {last}")
    return Measurement(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def build_commands(source: Path, output: Path, converter: Path) -> dict[str, list[str | Path]]:
    """The command of every contestant; `converter` is scripts/convert_gpt2.py."""
    data = next(source.glob(f"{PREFIX}.data-*"))
    whole = [sys.executable, converter, "--from-dir", source, "--output", output, "--no-verify"]
    return {
        **{name: [sys.executable, "-c", RUN_CONTESTANT, name, source, output] for name in CONTESTANTS},
        "cp": ["cp", data, output],
        "cp, flushed": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', data, output],
        "our whole command": whole,
    }


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run_benchmark(size: GPT2Size, rounds: int, folder: Path | None, converter: Path) -> dict[str, Any]:
    """Run all contestants in turn, `rounds` times.

    Args:
        size: of the checkpoint that is made for it.
        rounds: number of runs of each.
        folder: the disk to work on; by default where temporary files go.
        converter: path of scripts/convert_gpt2.py.

    Returns:
        All figures, ready for JSON.

    Raises:
        ValueError: a contestant fails, TensorFlow is missing, or `rounds` is no number of runs.
    """
    if rounds < 1:
        raise ValueError(f"--rounds {rounds} measures nothing: give 1 or more")
    with tempfile.TemporaryDirectory(dir=folder, prefix="hf_gpt_scratch-") as name:
        source, output = Path(name) / "source", Path(name) / "output"
        source.mkdir()
        measure([sys.executable, "-c", MAKE_CHECKPOINT, size.name, source])
        commands = build_commands(source, output, converter)
        measure(commands["our whole command"])  # not counted: it compiles our modules
        remove(output)
        load = os.getloadavg()[0]
        results: Results = {contestant: [] for contestant in commands}
        for _ in range(rounds):
            for contestant, command in commands.items():
                results[contestant].append(measure(command))
                remove(output)
        num_bytes = next(source.glob(f"{PREFIX}.data-*")).stat().st_size
    return {
        "size": size.name,
        "bytes": num_bytes,
        "rounds": rounds,
        "versions": installed_versions(),
        "threads": len(os.sched_getaffinity(0)),
        "load": [load, os.getloadavg()[0]],
        "contestants": {name: [vars(one) for one in measurements] for name, measurements in results.items()},
        "limits": describe_limits(results),
    }


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, without importing them: that would take memory."""
    versions = {"python": sys.version.split()[0]}
    for name in KEY_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    from statistics import median  # imported here, since it takes a noticeable part of a contestant's start

    return min(values), median(values), max(values)


def bare_interpreter_memory() -> float:
    """Peak memory of Python doing nothing, in MiB; it says so itself, since `measure` sees no less than its own."""
    program = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(process.stdout) / 1024


def describe_limits(results: Results) -> list[dict[str, Any]]:
    """What is asked for and what was reached; ratios are taken within a round, and their median decides."""
    limits = []
    for figure, numerator, denominator, bound, limit in RATIO_LIMITS:
        pairs = zip(results[numerator], results[denominator], strict=True)
        ratios = [getattr(one, figure) / getattr(other, figure) for one, other in pairs]
        limits.append(describe_limit(f"{figure} time, {numerator} / {denominator}", ratios, bound, limit))
    bare = bare_interpreter_memory()
    above = [one.memory - bare for one in results["ours"]]
    limits.append(describe_limit("MiB of ours above bare Python", above, "at most", MEMORY_LIMIT))
    return limits


def describe_limit(text: str, values: Sequence[float], bound: str, limit: float) -> dict[str, Any]:
    """Spread of the values, and whether their median keeps to the limit."""
    reached = spread(values)
    met = reached[1] >= limit if bound == "at least" else reached[1] <= limit
    return {"text": text, "reached": reached, "bound": bound, "limit": limit, "met": met}


def format_report(report: dict[str, Any]) -> list[str]:
    """The lines to print: what was measured on what, the contestants, the limits."""
    columns = "min / median / max"
    lines = [
        f"{report['size']}: {report['bytes']:,} bytes, {report['rounds']} rounds, {report['threads']} threads, "
        f"load {report['load'][0]:.1f} before and {report['load'][1]:.1f} after",
        ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        f"{columns:>42}{columns:>24}",
        f"{'':18}{'CPU s':>24}{'wall s':>24}{'peak MiB':>10}",
    ]
    for contestant, measurements in report["contestants"].items():
        cpu, wall = (format_spread(spread([one[figure] for one in measurements])) for figure in ("cpu", "wall"))
        memory = max(one["memory"] for one in measurements)
        lines.append(f"{contestant:18}{cpu:>24}{wall:>24}{memory:>10.0f}")
    for limit in report["limits"]:
        verdict = "met" if limit["met"] else "NOT MET"
        bound = f"{limit['bound']} {limit['limit']}"
        lines.append(f"{limit['text']:34}{format_spread(limit['reached']):>24}  {bound:12}{verdict}")
    return lines


def format_spread(values: Sequence[float]) -> str:
    """Write minimum, median and maximum."""
    return " / ".join(f"{value:.2f}" for value in values)

"""The converter timed against its peers: TensorFlow's reader, the tutorial's loading path and a plain copy.

Every run is a process of its own. This module imports little, because the candidates import it too.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.conversion.gpt2_sizes import HPARAMS_FILE, GPT2Size, find_size

from .benchmark import Benchmark
from .measuring import Measurement, Results, build_report, compare, describe_limit, interleave, measure, ratios


if TYPE_CHECKING:
    import argparse

    import numpy as np
    from torch import nn

    Block = dict[str, np.ndarray]

CONVERTER = Path(__file__).resolve().parents[2] / "scripts" / "convert_gpt2.py"
PREFIX = "model.ckpt"
TINY = GPT2Size("tiny", 32, 2, 4, 1666464, files={})  # for trying the benchmark itself
RUN_CANDIDATE = """
import sys
from pathlib import Path
from scripts.benchmarks.conversion import CANDIDATES
CANDIDATES[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
"""
MAKE_CHECKPOINT = """
import sys
from pathlib import Path
from scripts.benchmarks.conversion import choose_size, make_checkpoint
make_checkpoint(Path(sys.argv[2]), choose_size(sys.argv[1]))
"""


# Figure of `Measurement`, numerator, denominator, kind of bound, limit.
RATIO_LIMITS = (
    ("cpu", "tutorial", "ours", "at least", 10),
    ("cpu", "TensorFlow loop", "ours", "at least", 5),
    ("wall", "ours", "cp", "at most", 3),
    ("wall", "ours", "cp, flushed", "at most", 3),
)
MEMORY_LIMIT = 64  # MiB above the bare interpreter


def choose_size(name: str) -> GPT2Size:
    """Return a released size, or "tiny".

    Raises:
        ValueError: there is no such size.
    """
    return TINY if name == TINY.name else find_size(name)


def make_checkpoint(folder: Path, size: GPT2Size) -> None:
    """Have TensorFlow write random values under the names and in the shapes of src/model.py of openai/gpt-2.

    Raises:
        ValueError: TensorFlow is not installed.
    """
    from hf_gpt_scratch.conversion.readers.tf_checkpoint import import_tensorflow

    tf = import_tensorflow()
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, shape in checkpoint_shapes(size).items():
            tf1.get_variable(name, shape, initializer=tf1.random_normal_initializer())
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(folder / PREFIX), write_meta_graph=False)
    (folder / HPARAMS_FILE).write_text(json.dumps(size.hparams), encoding="utf-8")


def checkpoint_shapes(size: GPT2Size) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every variable."""
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
    """Convert a checkpoint to safetensors as the command does, every checksum verified, flushed to the disk."""
    from hf_gpt_scratch.conversion.convert import open_source, plan_conversion
    from hf_gpt_scratch.conversion.writers.safetensors_writer import write_model
    from hf_gpt_scratch.conversion.writers.tensor_blocks import tensor_blocks
    from hf_gpt_scratch.runtime.files import atomic_folder

    with atomic_folder(output) as folder:
        conversion = plan_conversion(open_source(source))
        plan = conversion.plan
        write_model(folder, plan.shapes, tensor_blocks(plan, conversion.source.tensors), "float32", 10**12)


def convert_with_tensorflow(source: Path, output: Path) -> None:
    """Convert with a loop over TensorFlow's reader, all tensors in memory, and safetensors' own save_file."""
    import numpy as np
    from safetensors.numpy import save_file

    from hf_gpt_scratch.conversion.readers.tf_checkpoint import import_tensorflow

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
    """Load as chapter 5 does: variables by name into a nested dict, a new model, each array copied into it."""
    blocks, others = read_as_tutorial(source)
    layers, embeddings, masks = draw_tutorial_model(len(blocks), len(others["wpe"]), *others["wte"].shape)
    fill_tutorial_model(layers, embeddings, blocks, others)
    output.mkdir()
    if len(masks) != len(layers):
        raise RuntimeError("a layer has no mask")


def read_as_tutorial(source: Path) -> "tuple[list[Block], Block]":
    """Return the variables of each block, and those outside the blocks."""
    import numpy as np

    from hf_gpt_scratch.conversion.readers.tf_checkpoint import import_tensorflow

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
    """Return the linear maps of each layer, embeddings and untied head, and the causal mask of each layer."""
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
    """Copy each array into a parameter; the token embedding is copied a second time for the head."""
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


CANDIDATES: dict[str, Callable[[Path, Path], None]] = {
    "ours": convert_ours,
    "TensorFlow loop": convert_with_tensorflow,
    "tutorial": load_as_tutorial,
}


def build_commands(source: Path, output: Path, converter: Path) -> dict[str, list[str | Path]]:
    """Return the command of every candidate; `converter` is scripts/convert_gpt2.py."""
    data = next(source.glob(f"{PREFIX}.data-*"))
    whole: list[str | Path] = [sys.executable, converter, "--from_dir", source, "--output", output, "--no_verify"]
    return {
        **{name: [sys.executable, "-c", RUN_CANDIDATE, name, source, output] for name in CANDIDATES},
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


def measure_writer(command: Sequence[Any], output: Path) -> Measurement:
    """Measure a command, and remove its output."""
    measurement = measure(command)
    remove(output)
    return measurement


class Conversion(Benchmark):
    """Conversions of a checkpoint that is made for it."""

    help = "checkpoint to safetensors, against TensorFlow, the tutorial and cp"
    packages = ("numpy", "google-crc32c", "safetensors", "torch", "tensorflow", "tensorflow-cpu")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add `--size` and `--dir`."""
        parser.add_argument("--size", default="124M", help="a released size, or tiny to try it out (default: 124M)")
        parser.add_argument("--dir", type=Path, help="disk to work on; three times the checkpoint must fit")

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Run all candidates in turn; ValueError: one fails, TensorFlow is missing, or an option is wrong."""
        size = choose_size(arguments.size)
        with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="hf_gpt_scratch-") as name:
            source, output = Path(name) / "source", Path(name) / "output"
            source.mkdir()
            measure([sys.executable, "-c", MAKE_CHECKPOINT, size.name, source])
            commands = build_commands(source, output, CONVERTER)
            measure(commands["our whole command"])  # not counted: it compiles our modules
            remove(output)
            machine = self.describe_machine(arguments)
            samplers = {name: partial(measure_writer, command, output) for name, command in commands.items()}
            results = interleave(samplers, arguments.rounds)
            num_bytes = next(source.glob(f"{PREFIX}.data-*")).stat().st_size
        yield build_report(
            "convert",
            f"{size.name}, {num_bytes:,} bytes",
            machine,
            results,
            bytes=num_bytes,
            comparisons=compare(results, "cpu", "ours"),
            limits=describe_limits(results),
        )


def bare_interpreter_memory() -> float:
    """Return the peak memory of idle Python in MiB, read by itself: `measure` sees no less than its own."""
    program = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(process.stdout) / 1024


def describe_limits(results: Results) -> list[dict[str, Any]]:
    """Return the limits; ratios are taken within a round, and their median decides."""
    limits = []
    for figure, numerator, denominator, bound, limit in RATIO_LIMITS:
        values = ratios(results, figure, numerator, denominator)
        limits.append(describe_limit(f"{figure} time, {numerator} / {denominator}", values, bound, limit))
    bare = bare_interpreter_memory()
    above = [one.memory - bare for one in results["ours"]]
    limits.append(describe_limit("MiB of ours above bare Python", above, "at most", MEMORY_LIMIT))
    return limits

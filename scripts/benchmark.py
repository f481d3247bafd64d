"""Measure this project against its peers, interleaved in one run: python scripts/benchmark.py convert."""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


os.environ.setdefault("HF_GPT_SCRATCH_REGISTER", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from hf_gpt_scratch.cli import run  # noqa: E402
from hf_gpt_scratch.conversion.gpt2_sizes import GPT2Size, find_size  # noqa: E402


Measurement = tuple[float, float, float]  # CPU seconds, wall seconds, peak memory in MiB


def make_checkpoint(folder: Path, size: GPT2Size) -> None:
    """A checkpoint of random values with the names and shapes of OpenAI's src/model.py, written by TensorFlow."""
    import tensorflow as tf  # noqa: TID251 - the peers read with it, so the benchmark needs it

    tf1, width = tf.compat.v1, size.hidden_size
    with tf.Graph().as_default(), tf1.Session() as session:
        add = lambda name, *shape: tf1.get_variable(name, shape, initializer=tf1.random_normal_initializer())  # noqa: E731
        add("model/wte", size.hparams["n_vocab"], width), add("model/wpe", size.hparams["n_ctx"], width)
        for norm in ("ln_f", *(f"h{i}/ln_{n}" for i in range(size.num_hidden_layers) for n in (1, 2))):
            add(f"model/{norm}/g", width), add(f"model/{norm}/b", width)
        for i in range(size.num_hidden_layers):
            for name, n_in, n_out in (
                ("attn/c_attn", 1, 3),
                ("attn/c_proj", 1, 1),
                ("mlp/c_fc", 1, 4),
                ("mlp/c_proj", 4, 1),
            ):
                add(f"model/h{i}/{name}/w", 1, n_in * width, n_out * width), add(f"model/h{i}/{name}/b", n_out * width)
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)


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
    import tensorflow as tf  # noqa: TID251
    from safetensors.numpy import save_file

    reader = tf.train.load_checkpoint(str(source / "model.ckpt"))
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
    import numpy as np
    import tensorflow as tf  # noqa: TID251
    import torch

    path, blocks, others = str(source / "model.ckpt"), {}, {}
    for name, _ in tf.train.list_variables(path):
        values = np.squeeze(tf.train.load_variable(path, name))
        first, *rest = name.removeprefix("model/").split("/")
        (blocks.setdefault(int(first[1:]), {}) if first[1:].isdigit() else others)["/".join(rest or [first])] = values
    (vocab, width), context = others["wte"].shape, len(others["wpe"])
    linears = (("q", 1, 1), ("k", 1, 1), ("v", 1, 1), ("attn/c_proj", 1, 1), ("mlp/c_fc", 1, 4), ("mlp/c_proj", 4, 1))
    layers = [
        {name: torch.nn.Linear(n_in * width, n_out * width) for name, n_in, n_out in linears}
        for _ in range(len(blocks))
    ]
    masks = [torch.triu(torch.ones(context, context), diagonal=1) for _ in layers]
    model = [
        torch.nn.Embedding(vocab, width),
        torch.nn.Embedding(context, width),
        torch.nn.Linear(width, vocab, bias=False),
    ]
    for layer, block in zip(layers, (blocks[i] for i in sorted(blocks)), strict=True):
        for kind in "wb":
            for letter, part in zip("qkv", np.split(block.pop(f"attn/c_attn/{kind}"), 3, axis=-1), strict=True):
                block[f"{letter}/{kind}"] = part
        for name, linear in layer.items():
            linear.weight = torch.nn.Parameter(torch.tensor(block[f"{name}/w"].T))
            linear.bias = torch.nn.Parameter(torch.tensor(block[f"{name}/b"]))
    for module, name in zip(model, ("wte", "wpe", "wte"), strict=True):
        module.weight = torch.nn.Parameter(torch.tensor(others[name]))
    output.mkdir()
    if len(masks) != len(layers):
        raise RuntimeError("a layer has no mask")


CONTESTANTS: dict[str, Callable[[Path, Path], None]] = {
    "ours": convert_ours,
    "TensorFlow loop": convert_with_tensorflow,
    "tutorial": load_as_tutorial,
}


def measure(command: list[str]) -> Measurement:
    """Run a command in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for; Popen shall not do it again
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed with exit code {process.returncode}: run it alone")
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024


def benchmark_convert(arguments: argparse.Namespace) -> None:
    """Interleave the contestants and print the table and the limits."""
    size = find_size(arguments.size)
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="hf_gpt_scratch-") as name:
        source, output = Path(name) / "source", Path(name) / "output"
        source.mkdir()
        python = [sys.executable, __file__, "contestant", "--size", size.name]
        measure([*python, "make", str(source), str(output)])
        data = next(source.glob("*.data-*"))
        commands = {contestant: [*python, contestant, str(source), str(output)] for contestant in CONTESTANTS}
        commands["cp"] = ["cp", str(data), str(output)]
        commands["cp, flushed"] = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(data), str(output)]
        script = str(Path(__file__).with_name("convert_gpt2.py"))
        commands["our whole command"] = [sys.executable, script, "--from-dir", str(source), "--output", str(output)]
        commands["our whole command"] += ["--no-verify"]
        results: dict[str, list[Measurement]] = {contestant: [] for contestant in commands}
        for _ in range(arguments.rounds):
            for contestant, command in commands.items():
                results[contestant].append(measure(command))
                shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        print(f"{data.stat().st_size:,} bytes, {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print_table(results)
    print_limits(results)


def bare_interpreter() -> float:
    """Peak memory of Python doing nothing, in MiB; it says so itself, since `measure` sees no less than its own."""
    code = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) / 1024


def print_table(results: dict[str, list[Measurement]]) -> None:
    """Minimum, median and maximum."""
    print(f"{'':20}{'CPU s':>22}{'wall s':>22}{'peak MiB':>10}")
    for contestant, measurements in results.items():
        cpu, wall, memory = zip(*measurements, strict=True)
        columns = (f"{min(x):.2f} / {statistics.median(x):.2f} / {max(x):.2f}" for x in (cpu, wall))
        print(f"{contestant:20}" + "".join(f"{column:>22}" for column in columns) + f"{max(memory):>10.0f}")


def print_limits(results: dict[str, list[Measurement]]) -> None:
    """What is asked for, and what was reached."""
    cpu, wall, memory = ({name: statistics.median(m[i] for m in ms) for name, ms in results.items()} for i in range(3))
    for text, reached, limit in (
        ("CPU time of the tutorial / ours, at least", cpu["tutorial"] / cpu["ours"], 10),
        ("CPU time of the TensorFlow loop / ours, at least", cpu["TensorFlow loop"] / cpu["ours"], 5),
        ("MiB above the bare interpreter, at most", memory["ours"] - bare_interpreter(), 64),
        ("wall time of ours / cp, at most", wall["ours"] / wall["cp"], 3),
        ("wall time of ours / cp that is flushed to the disk as ours, at most", wall["ours"] / wall["cp, flushed"], 3),
    ):
        met = reached >= limit if text.endswith("least") else reached <= limit
        print(f"{text} {limit}: {reached:.1f} {'met' if met else 'NOT MET'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="checkpoint to safetensors")
    convert.add_argument("--rounds", type=int, default=4, help="runs of each contestant (default: 4)")
    convert.add_argument("--dir", type=Path, help="disk to work on; three times the checkpoint must fit")
    contestant = commands.add_parser("contestant", help="one run of one contestant; used by the others")
    contestant.add_argument("name", choices=(*CONTESTANTS, "make"))
    contestant.add_argument("source", type=Path)
    contestant.add_argument("output", type=Path)
    for subparser in (convert, contestant):
        subparser.add_argument("--size", default="124M", help="a released size (default: 124M)")
    arguments = parser.parse_args()
    if arguments.command == "convert":
        benchmark_convert(arguments)
    elif arguments.name == "make":
        make_checkpoint(arguments.source, find_size(arguments.size))
    else:
        CONTESTANTS[arguments.name](arguments.source, arguments.output)


if __name__ == "__main__":
    run(main)

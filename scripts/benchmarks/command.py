"""The options of scripts/benchmark.py. No benchmark imports torch: the candidates have processes of their own."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from hf_gpt_scratch.runtime.cli import OneLineParser, number
from hf_gpt_scratch.runtime.files import write_json

from .benchmark import Benchmark
from .conversion import Conversion
from .evaluation import Evaluation
from .generation import Generation
from .gpu.benchmark import Gpu
from .growth import Growth
from .loading import Loading
from .measuring import format_report
from .past_context import PastContext
from .plot import plot_comparisons, plot_growth
from .profiling import Profiling
from .shares import Shares
from .small_steps import SmallSteps
from .speed_table import speed_tables, write_tables
from .sweep import Sweep
from .time_to_loss import TimeToLoss
from .time_to_loss_gpt2 import TimeToLossGpt2
from .tokenization import Tokenization
from .training import Training


BENCHMARKS: dict[str, Benchmark] = {
    "convert": Conversion(),
    "data": Tokenization(),
    "evaluate": Evaluation(),
    "growth": Growth(),
    "load": Loading(),
    "past_context": PastContext(),
    "time_to_loss": TimeToLoss(),
    "time_to_loss_gpt2": TimeToLossGpt2(),
    "train": Training(),
    "generate": Generation(),
    "gpu": Gpu(),
    "profile": Profiling(),
    "shares": Shares(),
    "small_steps": SmallSteps(),
    "sweep": Sweep(),
}
RESULTS = Path(__file__).with_name("results")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = OneLineParser(description="Measure this project against its peers, interleaved in one run.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.type = str  # the parser of each command looks at its own values
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.help, description=benchmark.help)
        add_common_arguments(command)
        benchmark.add_arguments(command)
    everything = commands.add_parser("all", help="all of them, each with its defaults")
    add_common_arguments(everything)
    table = commands.add_parser("table", help="tables of recorded runs; --write puts them into a file")
    table.add_argument("--dir", type=Path, default=RESULTS, help="folder of the files (default: the recorded ones)")
    table.add_argument(
        "--write", type=Path, metavar="FILE", nargs="?", const=RESULTS / "README.md",
        help="put them between the marks of that file instead of printing them (default: README.md of the results)",
    )  # fmt: skip
    return parser


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks have."""
    parser.add_argument("--rounds", type=number(int, 1), default=4, help="samples of each candidate (default: 4)")
    parser.add_argument(
        "--threads", type=number(int, 1), default=len(os.sched_getaffinity(0)), help="default: all cores"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, and a plot beside it")
    parser.add_argument("--peer_python", type=Path, metavar="PYTHON", help="Python with litgpt and llms-from-scratch")
    parser.add_argument(
        "--engine_python",
        type=Path,
        metavar="PYTHON",
        help="Python with ctranslate2, openvino-genai and optimum-intel",
    )
    parser.add_argument("--before", type=Path, metavar="DIR", help="checkout of an earlier commit, to compare with")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="folder of nanoGPT, with its model.py")


def run_command(arguments: Sequence[str]) -> None:
    """Run the command line, and print the reports.

    Raises:
        ValueError: a candidate fails, or an option is wrong or missing.
    """
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if parsed.command == "table":
        if parsed.write:
            write_tables(parsed.dir, parsed.write)
        else:
            print(speed_tables(parsed.dir))
        return
    if parsed.command != "all":
        if missing := missing_options(parsed.command, parsed):
            raise ValueError(f"{parsed.command} needs {' and '.join(missing)}")
        run_one(parsed.command, parsed, parsed.json)
        return
    for name in BENCHMARKS:
        options = argparse.Namespace(**(vars(parser.parse_args([name])) | vars(parsed)))
        if missing := missing_options(name, options):
            print(f"left out: {name}, without {' and '.join(missing)}", flush=True)
            continue
        run_one(name, options, parsed.json and parsed.json.with_stem(f"{parsed.json.stem}-{name}"))


def missing_options(name: str, arguments: argparse.Namespace) -> list[str]:
    """List the options that a benchmark needs and that are not given."""
    return [f"--{option}" for option in BENCHMARKS[name].needs if getattr(arguments, option) is None]


def run_one(name: str, arguments: argparse.Namespace, path: Path | None) -> None:
    """Run a benchmark, print its reports as they come and write them; each of several has a part of its own."""
    for report in BENCHMARKS[name].run(arguments):
        print("\n".join(format_report(report)), flush=True)
        if path:
            file = path.with_stem(f"{path.stem}-{report['part']}") if "part" in report else path
            write_json(file, report)
            if report.get("comparisons"):
                plot_comparisons(report, file.with_suffix(".png"))
            if report.get("growth"):
                plot_growth(report, file.with_suffix(".png"))

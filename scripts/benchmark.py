"""Measure this project against its peers, interleaved in one run: python scripts/benchmark.py convert."""

import argparse
import os
from pathlib import Path


# Nothing here needs torch or transformers; the contestants that do run in processes of their own.
os.environ.setdefault("HF_GPT_SCRATCH_REGISTER", "0")

from hf_gpt_scratch.cli import run  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this project against its peers, interleaved in one run.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="checkpoint to safetensors, against TensorFlow, the tutorial and cp")
    convert.add_argument("--size", default="124M", help="a released size, or tiny to try it out (default: 124M)")
    convert.add_argument("--rounds", type=int, default=4, help="runs of each contestant (default: 4)")
    convert.add_argument("--dir", type=Path, help="disk to work on; three times the checkpoint must fit")
    convert.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    return parser.parse_args()


def main() -> None:
    from hf_gpt_scratch.benchmarks.conversion import choose_size, format_report, run_benchmark
    from hf_gpt_scratch.conversion.repository_files import write_json

    arguments = parse_arguments()
    converter = Path(__file__).with_name("convert_gpt2.py")
    report = run_benchmark(choose_size(arguments.size), arguments.rounds, arguments.dir, converter)
    print("\n".join(format_report(report)))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    run(main)

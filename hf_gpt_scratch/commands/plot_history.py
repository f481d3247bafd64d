"""Draw the losses of several runs in one picture: hf-gpt-scratch plot history runs/a runs/b --output runs.png."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_gpt_scratch.runtime.cli import OneLineParser


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(prog=prog, description="Draw the losses of several runs in one picture.")
    parser.add_argument("folders", nargs="+", type=Path, help="the --output_dir of each run")
    parser.add_argument("--output", type=Path, default=Path("runs.png"), help="a .png or .pdf (default: runs.png)")
    parser.add_argument("--x", choices=("steps", "tokens"), default="steps", help="below the curves (default: steps)")
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Draw the picture and print where it is."""
    arguments = parse_arguments(words, prog)
    from hf_gpt_scratch.training.reporting.loss_plot import plot_runs

    print(f"plot: {plot_runs(arguments.folders, arguments.output, arguments.x)}")

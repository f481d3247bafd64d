"""Draw the losses of several runs in one picture: python scripts/plot_history.py runs/a runs/b --output runs.png."""

import argparse
from pathlib import Path

from hf_gpt_scratch.runtime.cli import OneLineParser, run


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="the --output_dir of each run")
    parser.add_argument("--output", type=Path, default=Path("runs.png"), help="a .png or .pdf (default: runs.png)")
    parser.add_argument("--x", choices=("steps", "tokens"), default="steps", help="below the curves (default: steps)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from hf_gpt_scratch.training.reporting.loss_plot import plot_runs

    print(f"plot: {plot_runs(arguments.folders, arguments.output, arguments.x)}")


if __name__ == "__main__":
    run(main)

"""Measure this project against its peers, interleaved in one run: python scripts/benchmark.py train."""

import sys
from pathlib import Path


if __name__ == "__main__":
    # The benchmarks belong to the clone, not to the package, which need not be installed.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from hf_gpt_scratch.runtime.cli import run
    from scripts.benchmarks.command import run_command

    run(lambda: run_command(sys.argv[1:]))

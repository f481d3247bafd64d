"""Measure this project against its peers, interleaved in one run: python scripts/benchmark.py train."""

import os
import sys
from pathlib import Path


# Nothing here needs torch or transformers; the contestants that do run in processes of their own.
os.environ.setdefault("HF_GPT_SCRATCH_REGISTER", "0")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the benchmarks belong to the clone, not to the package

from hf_gpt_scratch.runtime.cli import run  # noqa: E402
from scripts.benchmarks.command import run_command  # noqa: E402


if __name__ == "__main__":
    run(lambda: run_command(sys.argv[1:]))

"""Runs a program in an interpreter of its own, into which nothing but what it imports comes."""

import os
import subprocess
import sys
from pathlib import Path


# MiB so far. VmHWM, because ru_maxrss begins with the peak of the process that started this one.
PEAK = """
import re
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
"""


def run_light(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

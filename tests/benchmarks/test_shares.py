"""Proves that the parts of a run are told apart, and that the benchmark measures the real command."""

import json
import subprocess
import sys

import pytest

from scripts.benchmarks import shares


def test_parts_of_a_run_are_told_apart():
    """40 s of wall time: 4 of start, 20 in ten steps, 6 + 3 + 1 in the parts, 6 at the end; 100 steps by default."""
    parts = {"start": 4.0, "evaluations": 6.0, "samples": 3.0, "checkpoints": 1.0}
    history = [
        {"event": "run", "settings": {"num_train_epochs": 10}, "steps_per_epoch": 10, "expected_seconds": 33.0},
        *[{"event": "step"}] * 10,
        *[{"event": "evaluation"}] * 3,
        {"event": "end", "seconds": 30.0, "seconds_of_parts": parts},
    ]
    details = shares.describe_run(history, 40.0)
    assert details["evaluations, samples, checkpoints and end"] == pytest.approx(16 / 36, abs=1e-4)
    assert details["start, of a whole run"] == pytest.approx(4 / (4 + 360), abs=1e-4)
    assert details["shares"] == {"evaluations": 0.1667, "samples": 0.0833, "checkpoints": 0.0278, "end": 0.1667}
    assert (details["steps"], details["evaluation points"]) == (10, 3)


@pytest.mark.slow
def test_a_run_is_measured_as_typed(project_root, tmp_path):
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "shares", "--sizes", "20 KB"]
    command += ["--rounds", "1", "--threads", "1", "--dir", tmp_path, "--json", tmp_path / "x.json"]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [limit["text"].partition(":")[0] for limit in report["limits"]] == ["20 KB"] * 2
    assert report["candidates"]["20 KB"][0]["details"]["evaluation points"] > 5

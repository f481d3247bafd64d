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
    assert details["all together, of a whole run"] == pytest.approx((4 + 160) / (4 + 360), abs=1e-4)
    assert not set(shares.ESTIMATES) & set(details)
    assert details["shares"] == {"evaluations": 0.1667, "samples": 0.0833, "checkpoints": 0.0278, "end": 0.1667}
    assert (details["steps"], details["evaluation points"]) == (10, 3)


def test_estimates_are_held_against_the_time_both_ways():
    """50 s were expected by the dry run, 4 of start and 28 by the run; it took 40."""
    history = [
        {"event": "run", "settings": {"num_train_epochs": 1}, "steps_per_epoch": 1, "expected_seconds": 28.0},
        {"event": "step"},
        {"event": "end", "seconds": 30.0, "seconds_of_parts": {"start": 4.0}},
    ]
    details = shares.describe_run(history, 40.0, 50.0)
    assert [details[name] for name in shares.ESTIMATES] == [1.25, 1.25]
    assert details["seconds that the dry run expected"] == 50


def test_dry_run_is_asked_for_the_time():
    said = "time about 1 day, 2:03:04 by a measured micro-batch, of which 0:00:09 start"
    command = [sys.executable, "-c", f"import sys; print({said!r}, sys.argv[1:])"]
    assert shares.dry_run_seconds(command, 1) == ((24 + 2) * 60 + 3) * 60 + 4
    with pytest.raises(ValueError, match="--dry_run says no time: time at least"):
        shares.dry_run_seconds([sys.executable, "-c", "print('time at least 5 s')"], 1)


def test_unbounded_run_of_a_few_steps_has_both_estimates(tmp_path):
    """The real commands, with a tiny model."""
    text = tmp_path / "text.txt"
    text.write_text("The lamp went out. " * 300, encoding="utf-8")
    flags = "--max_steps 3 --hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2 --sample_tokens 0"
    measured = shares.measure_run(text, tmp_path / "output", flags.split(), 1)
    assert all(1 <= measured.details[name] < 100 for name in shares.ESTIMATES)
    assert measured.details["steps"] == 3
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_a_run_is_measured_as_typed(project_root, tmp_path):
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "shares", "--sizes", "20 KB"]
    command += ["--rounds", "1", "--threads", "1", "--dir", tmp_path, "--json", tmp_path / "x.json"]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [limit["text"].partition(":")[0] for limit in report["limits"]] == ["20 KB"] * 5
    assert report["candidates"]["20 KB"][0]["details"]["evaluation points"] > 5

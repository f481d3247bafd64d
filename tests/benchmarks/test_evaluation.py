"""Proves that evaluation is measured against forward passes over the same tokens with the same loss."""

import json
import subprocess
import sys

import pytest

from scripts.benchmarks.evaluation import refuse_other_work
from scripts.benchmarks.measuring import Measurement


@pytest.mark.nightly
def test_both_are_measured_as_typed(project_root, tmp_path):
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "evaluate", "--size", "tiny"]
    command += ["--rounds", "2", "--threads", "1", "--before", project_root, "--json", tmp_path / "x.json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    ours, peer = (report["candidates"][name] for name in ("evaluate_text", "training forward"))
    assert ours[0]["details"]["tokens"] == peer[0]["details"]["tokens"] > 300
    assert ours[0]["details"]["loss"] == pytest.approx(peer[0]["details"]["loss"], rel=1e-6)
    limit, limit_before = report["limits"]
    assert (limit_before["text"], limit_before["limit"]) == ("tokens/s, evaluate_text / evaluate_text, before", 1.7)
    speeds = sorted(slow["wall"] / fast["wall"] for slow, fast in zip(peer, ours, strict=True))
    assert limit["reached"] == pytest.approx([speeds[0], sum(speeds) / 2, speeds[1]])
    assert (limit["bound"], limit["limit"]) == ("at least", 1.0)
    assert process.stdout.splitlines()[-2].startswith("tokens/s, evaluate_text / training forward")


@pytest.mark.parametrize(
    ("details", "line"),
    [({"tokens": 9, "loss": 2.0}, "scored 9 tokens, not 10"), ({"tokens": 10, "loss": 2.1}, "found the loss 2.1")],
)
def test_other_work_is_refused(details, line):
    first = Measurement(1.0, 1.0, 1.0, {"tokens": 10, "loss": 2.0})
    with pytest.raises(ValueError, match=line):
        refuse_other_work({"evaluate_text": [first], "training forward": [Measurement(1.0, 1.0, 1.0, details)]})

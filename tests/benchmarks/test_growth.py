"""Proves that the benchmark of growth measures the real commands, and that what grows is said to grow."""

import argparse
import json
import math
import subprocess
import sys

import pytest

from scripts.benchmarks import growth
from scripts.benchmarks.measuring import Measurement


LIMITS = ["wall time of {}, 100 x / 10 x", "CPU time of {}, 100 x / 10 x", "peak memory, 100 x / 1 x"]


@pytest.mark.parametrize(
    ("task", "unit", "units"),
    [
        ("prepare", "1 MB of text", [0.006, 0.042, 0.402]),
        # Five starts of PyTorch each, and more for the model.
        pytest.param("evaluate", "1 MB of text", [0.0022, 0.004, 0.022], marks=pytest.mark.slow),
        pytest.param("train", "1000 tokens", None, marks=pytest.mark.slow),
    ],
)
def test_a_task_is_measured_as_typed(project_root, tmp_path, task, unit, units):
    scale = {"prepare": "0.004", "evaluate": "0.01", "train": "0.05"}[task]
    (tmp_path / "work").mkdir()
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "growth", "--tasks", task, "--scale", scale]
    command += ["--rounds", "1", "--threads", "1", "--dir", tmp_path / "work", "--json", tmp_path / "x.json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert not list((tmp_path / "work").iterdir()), "the benchmark leaves nothing behind"
    report = json.loads((tmp_path / f"x-{task}.json").read_text(encoding="utf-8"))
    assert (tmp_path / f"x-{task}.png").read_bytes().startswith(b"\x89PNG")
    assert list(report["candidates"]) == [f"{task}, {factor} x" for factor in (0, 1, 10, 100)]
    assert [limit["text"] for limit in report["limits"]] == [text.format(unit) for text in LIMITS]
    assert all(limit["limit"] == 1.1 for limit in report["limits"])
    if units:
        assert report["growth"]["units"] == pytest.approx(units, rel=0.02)
    first, *_, last = report["growth"]["units"]
    assert 3 < last / first <= 100
    lines = process.stdout.splitlines()
    assert lines[0].startswith(f"growth: {task}, ")
    assert [line.partition(":")[0] for line in lines if " CPU s for " in line] == ["1 x", "10 x", "100 x"]


GROWING = """
import sys
held = b"x" * int(float(sys.argv[1]) * 1e6 * float(sys.argv[2]))
"""


@pytest.mark.parametrize(("megabytes", "met"), [(0.0, True), (8.0, False)])
def test_memory_that_grows_is_found(monkeypatch, tmp_path, megabytes, met):
    """A real process, with and without memory in proportion to its data; its time is not looked at."""

    def command(data, output, threads):
        return [sys.executable, "-c", GROWING, (data / "amount").read_text(), megabytes]

    def make(folders):
        amounts = {folder: num_bytes / 1000 for folder, num_bytes in folders.items()}
        for folder, amount in amounts.items():
            (folder / "amount").write_text(str(amount))
        return amounts

    monkeypatch.setitem(growth.TASKS, "growing", growth.Task("1 kB", 1000, make, command))
    arguments = argparse.Namespace(tasks=["growing"], scale=1.0, rounds=1, threads=1, dir=tmp_path)
    (report,) = growth.run(arguments)
    memory = report["limits"][2]
    assert memory["text"] == LIMITS[2]
    assert memory["met"] is met, memory


@pytest.mark.parametrize(("power", "met"), [(0.9, True), (1.0, True), (1.03, True), (1.1, False), (1.3, False)])
def test_time_that_grows_is_found(power, met):
    """Times made up as the amount to a power: no clock is read, so no busy machine can change what is found."""
    amounts = {0: 0.0, 1: 10.0, 10: 100.0, 100: 1000.0}
    taken = {factor: [Measurement(1 + amount**power, 1 + amount**power, 50.0)] for factor, amount in amounts.items()}
    wall, cpu, memory = growth.describe_limits(growth.describe_growth("1 MB", taken, amounts))
    assert wall["reached"] == cpu["reached"] == pytest.approx([10 ** (power - 1)] * 3)
    assert (wall["met"], cpu["met"], memory["met"]) == (met, met, True)


@pytest.mark.parametrize("less", [0.0, -0.1, 0.1])
@pytest.mark.parametrize("more", [0.0, -0.1, 0.1])
def test_what_takes_no_longer_than_the_start_is_not_measured(less, more):
    """Not a division by zero, nor a negative ratio, which would keep to "at most"."""
    seconds = {0: 1.0, 1: 1.0, 10: 1 + less, 100: 1 + more}
    taken = {factor: [Measurement(one, one, 50.0)] for factor, one in seconds.items()}
    limits = growth.describe_limits(growth.describe_growth("1 MB", taken, {0: 0.0, 1: 1.0, 10: 10.0, 100: 100.0}))
    reached = 0.1 if less > 0 and more > 0 else math.inf
    assert [limit["reached"][1] for limit in limits] == pytest.approx([reached, reached, 1])
    assert [limit["met"] for limit in limits] == [reached < 1, reached < 1, True]


def test_the_start_is_subtracted_and_the_median_decides():
    """Two seconds of start, then 0.1 s a unit, and 0.2 s at 100 times in one of three rounds."""

    def samples(units, seconds):
        return [Measurement(2 + units * each, 2 + units * each, 300.0 + units) for each in seconds]

    amounts = {0: 1.0, 1: 11.0, 10: 101.0, 100: 1001.0}
    usual = (0.1, 0.1, 0.1)
    taken = {factor: samples(amount, usual) for factor, amount in amounts.items()}
    taken[100] = samples(amounts[100], (0.1, 0.2, 0.1))
    found = growth.describe_growth("1 MB", taken, amounts)
    assert [point["cpu"][1] for point in found["points"]] == pytest.approx([0.1, 0.1, 0.1])
    assert found["points"][2]["wall"][2] == pytest.approx(0.2, rel=1e-3)
    wall, cpu, memory = growth.describe_limits(found)
    assert wall["met"]
    assert cpu["reached"] == pytest.approx([1, 1, 2], rel=1e-3)
    assert memory["reached"][1] == pytest.approx(1301 / 311)
    assert not memory["met"]


def test_documents_have_the_length_asked_for_and_are_not_copies():
    texts = list(growth.documents(300_000))
    assert sum(len(text.encode()) for text in texts) == pytest.approx(300_000, rel=0.01)
    assert len(set(texts)) == len(texts) > 10
    assert texts == list(growth.documents(300_000))

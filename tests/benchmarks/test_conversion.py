"""Proves that the benchmark runs as typed: every candidate is measured, and table and JSON say the same."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.measuring import (
    Measurement,
    compare,
    describe_limit,
    interleave,
    measure,
    processor_name,
    ratios,
)


CANDIDATES = ["ours", "TensorFlow loop", "tutorial", "cp", "cp, flushed", "our whole command"]
LIMITS = {
    "cpu time, tutorial / ours": ("at least", 10),
    "cpu time, TensorFlow loop / ours": ("at least", 5),
    "wall time, ours / cp": ("at most", 3),
    "wall time, ours / cp, flushed": ("at most", 3),
    "MiB of ours above bare Python": ("at most", 64),
}


def run_script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "scripts" / "benchmark.py", "convert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_each_round_begins_with_another_candidate():
    order = []
    results = interleave({name: lambda name=name: order.append(name) or len(order) for name in "abc"}, rounds=4)
    assert "".join(order) == "abcbcacababc"
    assert results["b"] == [2, 4, 9, 11]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere the processor is named by its architecture")
def test_processors_of_one_name_are_told_apart():
    """By what PyTorch found out for itself."""
    name, _, vectors = processor_name().rpartition(", ")
    assert name
    expected = {"avx512f": "AVX512", "avx2": "AVX2", "no AVX2": "DEFAULT"}
    assert torch.backends.cpu.get_cpu_capability() == expected[vectors]


@pytest.fixture(scope="module")
def figures(project_root, tmp_path_factory):
    """Lines printed and content of the JSON file, one round at a tiny size."""
    pytest.importorskip("tensorflow", reason="two of the candidates need TensorFlow")
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "work").mkdir()
    arguments = ("--size", "tiny", "--rounds", "1", "--dir", str(folder / "work"), "--json", str(folder / "x.json"))
    process = run_script(project_root, *arguments)
    assert process.returncode == 0, process.stderr
    assert not list((folder / "work").iterdir()), "the benchmark leaves nothing behind"
    report = json.loads((folder / "x.json").read_text(encoding="utf-8"))
    return process.stdout.splitlines(), report | {"picture": (folder / "x.png").read_bytes()}


@pytest.mark.nightly
def test_every_candidate_is_measured(figures):
    _, report = figures
    assert sorted(report["candidates"]) == sorted(CANDIDATES)
    for name, measurements in report["candidates"].items():
        assert len(measurements) == 1
        assert measurements[0]["wall"] > 0, name
        assert measurements[0]["memory"] > 0, name
    assert report["bytes"] == 4 * 1666464  # parameters of the tiny model, counted by hand


@pytest.mark.nightly
def test_limits_are_judged_by_the_figures(figures):
    _, report = figures
    one = {name: measurements[0] for name, measurements in report["candidates"].items()}
    assert {limit["text"]: (limit["bound"], limit["limit"]) for limit in report["limits"]} == LIMITS
    reached = {limit["text"]: limit["reached"] for limit in report["limits"]}
    for text in list(LIMITS)[:4]:
        figure, _, sides = text.partition(" time, ")
        numerator, _, denominator = sides.partition(" / ")
        ratio = one[numerator][figure] / one[denominator][figure]
        assert reached[text] == pytest.approx([ratio] * 3, rel=1e-9)
    assert 0 < reached["MiB of ours above bare Python"][0] < one["ours"]["memory"]
    for limit in report["limits"]:
        above = limit["reached"][1] >= limit["limit"]
        assert limit["met"] == (above if limit["bound"] == "at least" else not above)


@pytest.mark.nightly
def test_table_shows_what_the_json_holds(figures):
    lines, report = figures
    assert lines[0] == "convert: tiny, 6,665,856 bytes"
    for word in ("threads", "load"):
        assert word in lines[1]
    assert f"python {report['machine']['versions']['python']}" in lines[2]
    assert "tensorflow" in lines[2]
    for name, (measurement,) in report["candidates"].items():
        line = next(line for line in lines if line.startswith(f"{name:18}"))
        assert line.split() == [
            *name.split(),
            *spread(measurement["cpu"]),
            *spread(measurement["wall"]),
            line.split()[-1],
        ]
    for limit in report["limits"]:
        line = next(line for line in lines if line.startswith(f"{limit['text']:34} "))
        assert line.endswith(" NOT MET") is not limit["met"]


def test_memory_of_a_process_is_its_own():
    """Linux counts in what the parent held at the start: a benchmark that holds much must not be seen."""
    held = b"x" * (300 << 20)
    assert measure([sys.executable, "-c", "pass"]).memory < 100
    assert measure([sys.executable, "-c", f"b'x' * {len(held)}"]).memory > 300


@pytest.mark.parametrize(
    ("code", "line"),
    [("exit('too large')", "failed with exit code 1: too large"), (None, "cannot be measured: .*absent")],
)
def test_a_command_that_fails_is_named(code, line):
    command = [sys.executable, "-c", code] if code else ["absent"]
    with pytest.raises(ValueError, match=line):
        measure(command)


def test_ratios_are_taken_within_a_round():
    """A machine that slows down for one round changes no ratio; the ratio of the medians would be 15 / 4."""
    slow, fast = ([Measurement(cpu, 1.0, 100.0) for cpu in row] for row in ((15.0, 20.0, 2.0), (5.0, 4.0, 1.0)))
    results = {"ours": fast, "peer": slow}
    assert ratios(results, "cpu", "peer", "ours") == [3, 5, 2]
    (comparison,) = compare(results, "cpu", "ours")
    assert comparison["times"] == (2, 3, 5)
    assert describe_limit("x", [3, 5, 2], "at least", 3)["met"]
    assert not describe_limit("x", [3, 5, 2], "at most", 2.9)["met"]


@pytest.mark.nightly
def test_comparisons_are_drawn_beside_the_json(figures):
    _, report = figures
    assert {row["peer"] for row in report["comparisons"]} == set(CANDIDATES) - {"ours"}
    assert report["picture"].startswith(b"\x89PNG")


def spread(value: float) -> list[str]:
    return f"{value:.2f} / {value:.2f} / {value:.2f}".split()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--size", "13B"), "error: unknown GPT-2 size '13B'"),
        (("--size", "tiny", "--rounds", "0"), "error: argument --rounds: must be at least 1, got 0"),
    ],
)
def test_mistakes_end_in_one_line(project_root, arguments, line):
    process = run_script(project_root, *arguments)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith(line)

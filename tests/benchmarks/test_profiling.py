"""Proves that a profile says where the time went: of known work, and of a step and a text of ours, run as typed."""

import json
import subprocess
import sys

import pytest
import torch

from scripts.benchmarks.measuring import Measurement, format_profile, profile_rows
from scripts.benchmarks.profiling import FORWARD, NUM_SHOWN, PRODUCTS, make_profiled, profile_of
from scripts.benchmarks.speed_table import profile_table_rows, speed_tables


def make_known_work(num_products, num_sines):
    """Imported by the profiled candidate."""
    matrix = torch.rand(400, 400)

    def work():
        for _ in range(num_products):
            matrix @ matrix
        for _ in range(num_sines):
            matrix.sin()

    return work


def test_known_work_is_found():
    """Operators and their calls; and the time goes where more is done."""
    found = []
    for products, sines in ((200, 1), (1, 200)):
        options = {"num_products": products, "num_sines": sines}
        details = make_profiled(f"{__name__}:make_known_work", options)()()
        rows = {name: (seconds, calls) for name, seconds, calls in details["operators"]}
        assert rows["aten::mm"][1] == products
        assert rows["aten::sin"][1] == sines
        found.append(rows)
    assert found[0]["aten::mm"][0] > found[0]["aten::sin"][0]
    assert found[1]["aten::mm"][0] < found[1]["aten::sin"][0]


PROFILE = {
    "wall": 2.0,
    "products": 1.25,
    "operators": [["aten::mm", 1.25, 7], ["aten::sin", 0.25, 1]],
    "others": 0.1,
    "bound": {"text": "part of the best", "value": 0.914},
}


def test_the_parts_add_up():
    operators = [("aten::mm", 1.0, 7), *((f"aten::{n}", 0.01, 1) for n in range(NUM_SHOWN)), ("aten::bmm", 0.005, 1)]
    profile = profile_of({"ours": [Measurement(1, 1, 1), Measurement(3.0, 2.0, 1, {"operators": operators})]})
    assert profile["products"] == pytest.approx(1.005)
    assert profile["others"] == pytest.approx(0.015)
    rows = profile_rows(profile)
    assert sum(seconds for _, seconds, _ in rows[1:]) == pytest.approx(2.0)
    operators.append((FORWARD, 0.25, 1))
    profile = profile_of({"ours": [Measurement(3.0, 2.0, 1, {"operators": operators})]})
    assert profile_rows(profile) == [*rows, ("of which in the model's forward", 0.25, None)]
    assert [row[2] for row in profile_rows(PROFILE)] == [None, 7, 1, None, None]


def test_lines_and_table_say_the_same():
    expected = [
        ("matrix products together", "1.250", "62.5%", ""),
        ("aten::mm", "1.250", "62.5%", "7"),
        ("aten::sin", "0.250", "12.5%", "1"),
        ("all other operators", "0.100", "5.0%", ""),
        ("outside of operators", "0.400", "20.0%", ""),
    ]
    lines = format_profile(PROFILE)
    assert lines[-1] == "part of the best: 0.91"
    for line, (name, seconds, part, calls) in zip(lines[:-1], expected, strict=True):
        assert line.split() == [*name.split(), seconds, "s", part, *([calls, "calls"] if calls else [])]
    machine = {"date": "2026-01-02", "threads": 2, "processor": "A CPU"}
    report = {"benchmark": "profile", "setting": "small", "machine": machine, "profile": PROFILE}
    title, *rows, bound = profile_table_rows(report)
    assert title[0].startswith("**profile: small**")
    assert [tuple(row) for row in rows] == expected
    assert bound == ["part of the best", "", "0.91", ""]
    assert profile_table_rows({"benchmark": "train"}) == []


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "yardstick"), [("train-tiny", "torch.mm"), ("generate-tiny", "weights read once")])
def test_the_command_profiles_ours(project_root, tmp_path, name, yardstick):
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "profile", "--settings", name]
    process = subprocess.run(
        [*command, "--rounds", "1", "--json", tmp_path / "p.json"], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / f"p-{name}.json").read_text(encoding="utf-8"))
    assert set(report["candidates"]) == {yardstick, "ours"}
    profile = report["profile"]
    assert len(profile["operators"]) == NUM_SHOWN
    products = PRODUCTS & {one[0] for one in profile["operators"]}
    assert products
    assert 0 < profile["products"] < profile["wall"]
    assert profile["bound"]["value"] > 0
    outside = {name: seconds for name, seconds, _ in profile_rows(profile)}["outside of operators"]
    assert 0 < profile["forward"] < outside
    tables = speed_tables(tmp_path)
    assert "<details><summary>Where the time goes</summary>" in tables
    for operator in products:
        assert operator in process.stdout
        assert tables.count(f"| {operator} |") == 1

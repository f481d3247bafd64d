"""Proves that the items of a part are recorded one by one, whatever fails in one, and continued after a death."""

import json
import subprocess
import sys

import pytest

from scripts.benchmarks.gpu.parts import last_line, run_items
from scripts.benchmarks.gpu.record import DONE, FAILED, MISSING, UNFINISHED, MissingError, Outcome, Record


def missing():
    raise MissingError("the package flash-attn")


def failing():
    raise RuntimeError("CUDA error\nan illegal memory access was encountered\n")


ITEMS = {"good": lambda: Outcome(["all right"], {"n": 1}), "missing": missing, "failing": failing, "last": failing}


def getting_further():
    yield Outcome(["a round"], {"rounds": 1})
    yield Outcome(["two rounds"], {"rounds": 2})
    raise RuntimeError("lost")


def test_what_was_found_before_an_error_stays(tmp_path):
    run_items(Record(tmp_path, "proof"), {"rounds": getting_further}, lambda: None)
    item = Record(tmp_path, "proof").items["rounds"]
    assert item["result"] == FAILED
    assert item["lines"] == ["RuntimeError: lost", "two rounds"]
    assert item["figures"] == {"rounds": 2}


def test_each_item_has_its_result(tmp_path):
    cleaned = []
    run_items(Record(tmp_path, "proof"), ITEMS, lambda: cleaned.append(1))
    items = Record(tmp_path, "proof").items
    assert [item["result"] for item in items.values()] == [DONE, MISSING, FAILED, FAILED]
    assert [item["lines"] for item in list(items.values())[:3]] == [
        ["all right"], ["the package flash-attn"], ["RuntimeError: an illegal memory access was encountered"]
    ]  # fmt: skip
    assert items["good"]["figures"] == {"n": 1}
    assert len(cleaned) == 4


DYING = """
import os, sys
from pathlib import Path
from scripts.benchmarks.gpu.parts import run_items
from scripts.benchmarks.gpu.record import Outcome, Record
def deadly():
    yield Outcome(["2"])
    os._exit(7)
items = {"first": lambda: Outcome(["1"]), "deadly": deadly, "last": lambda: Outcome(["3"])}
run_items(Record(Path(sys.argv[1]), "proof"), items, lambda: None)
"""


def test_after_a_death_the_next_item_comes(tmp_path, project_root):
    """A second process leaves out what was begun, and the item that killed the first one is seen."""
    codes = [
        subprocess.run([sys.executable, "-c", DYING, tmp_path], cwd=project_root, timeout=120).returncode
        for _ in range(2)
    ]
    assert codes == [7, 0]
    items = json.loads((tmp_path / "proof.json").read_text(encoding="utf-8"))["items"]
    assert {name: item["result"] for name, item in items.items()} == {
        "first": DONE, "deadly": UNFINISHED, "last": DONE
    }  # fmt: skip
    assert items["deadly"]["lines"] == ["2"]


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one"), "ValueError: one"), (KeyError(), "KeyError: "), (OSError("a\n\n"), "OSError: a")],
)
def test_the_last_line_of_an_error(error, line):
    assert last_line(error) == line

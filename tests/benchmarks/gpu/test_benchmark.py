"""Proves that the command stops parts, tells how they ended, and sums up also after Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from scripts.benchmarks.gpu.benchmark import run_part
from scripts.benchmarks.gpu.plan import REHEARSAL
from scripts.benchmarks.gpu.record import DONE, UNFINISHED, Record


def command(project_root, *arguments):
    return [sys.executable, str(project_root / "scripts" / "benchmark.py"), "gpu", *map(str, arguments)]


def test_a_part_ends_at_its_limit(tmp_path):
    run_part("proof", REHEARSAL, tmp_path, time.monotonic() + 0.2)
    content = Record(tmp_path, "proof").content
    assert content["ended"] == "at its time limit"
    assert content["seconds"] < 60


def test_a_part_that_cannot_start_is_told_with_its_last_line(tmp_path):
    """A device that is not there; it is not tried again."""
    run_part("proof", replace(REHEARSAL, device="nowhere"), tmp_path, time.monotonic() + 120)
    ended = Record(tmp_path, "proof").content["ended"]
    assert ended.startswith("with exit code 1: RuntimeError: ")
    assert (tmp_path / "proof.log").read_text(encoding="utf-8").count("Traceback") == 1


DYING = """
import os, sys
from pathlib import Path
from scripts.benchmarks.gpu.parts import run_items
from scripts.benchmarks.gpu.record import Outcome, Record
items = {"first": lambda: Outcome(["1"]), "deadly": lambda: os._exit(3), "last": lambda: Outcome(["3"])}
run_items(Record(Path(sys.argv[4]), "proof"), items, lambda: None)
"""


def test_a_part_that_dies_is_started_again_while_it_gets_further(tmp_path, monkeypatch):
    """Python is a program here that runs the items above, one of which kills its process."""
    (tmp_path / "dying.py").write_text(DYING, encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "dying.py"} "$@"\n', encoding="utf-8")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    run_part("proof", REHEARSAL, tmp_path, time.monotonic() + 120)
    record = Record(tmp_path, "proof")
    assert record.content["ended"] == "at its end"
    assert [item["result"] for item in record.items.values()] == [DONE, UNFINISHED, DONE]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--rehearse"], "error: gpu needs --out"),
        (["--out", "here", "--parts", "prof"], "error: unknown 'prof': choose from proof; step_speed"),
        (["--out", "."], "holds files already: name a new folder"),
        (["--out", "here", "--text", "mistyped.txt"], "error: --text mistyped.txt: there is no file mistyped.txt"),
        (["--out", "here", "--nanogpt", "."], "error: --nanogpt .: there is no file model.py"),
        (["--out", "here", "--json", "x.json"], "error: --json would do nothing with gpu: leave it out"),
    ],
)
def test_mistakes_end_in_one_line(project_root, tmp_path, arguments, line):
    (tmp_path / "file").touch()
    process = subprocess.run(
        command(project_root, *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 1
    assert line in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.commands
def test_ctrl_c_leaves_the_table(project_root, tmp_path):
    out = tmp_path / "out"
    words = command(project_root, "--out", out, "--rehearse", "--threads", 1)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "proof.json").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted\n"
    assert json.loads((out / "proof.json").read_text(encoding="utf-8"))["ended"] == "interrupted"
    assert printed == (out / "summary.txt").read_text(encoding="utf-8")
    assert "decoding: nothing; not started" in printed
    assert not (out / "work").exists()

"""Proves that candidates stay in their process, start outside of the samples, and fail with one line."""

import shutil
import time

import pytest

from scripts.benchmarks.workers import PACKAGE_PARENT, Candidate, run_workers


HERE = "test_workers"


def make_counter(start_seconds, step):
    """A candidate: slow to start, prints, and counts its samples."""
    time.sleep(start_seconds)
    counted = [0]

    def work():
        print("a library that prints")
        counted[0] += step
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        return {"count": counted[0]}

    return work


def make_failing():
    def work():
        raise RuntimeError("no such file: model.py")

    return work


def make_package():
    """A candidate that tells which package it has."""
    import hf_gpt_scratch

    return lambda: {"file": hf_gpt_scratch.__file__}


@pytest.fixture(autouse=True)
def _find_this_file(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(__file__).rpartition("/")[0])


def test_samples_follow_one_another_in_one_process_without_its_start():
    candidates = [
        Candidate("one", f"{HERE}:make_counter", {"start_seconds": 0.5, "step": 1}),
        Candidate("two", f"{HERE}:make_counter", {"start_seconds": 0, "step": 10}),
    ]
    results = run_workers(candidates, rounds=3, threads=1, warm_up=2)
    assert [sample.details["count"] for sample in results["one"]] == [3, 4, 5]
    assert [sample.details["count"] for sample in results["two"]] == [30, 40, 50]
    for sample in results["one"]:
        assert 0.02 <= sample.cpu < 0.5
        assert sample.wall < 0.5
        assert 5 < sample.memory < 500


def test_a_candidate_that_fails_is_named_in_one_line():
    line = r"^broken failed with exit code 1: RuntimeError: no such file: model.py$"
    with pytest.raises(ValueError, match=line):
        run_workers([Candidate("broken", f"{HERE}:make_failing")], rounds=1, threads=1)


def test_another_checkout_is_measured_beside_this_one(tmp_path):
    shutil.copytree(PACKAGE_PARENT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("results"))
    package = tmp_path / "hf_gpt_scratch" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    make = f"{HERE}:make_package"
    results = run_workers([Candidate("now", make), Candidate("before", make, source=tmp_path)], rounds=1, threads=1)
    files = {name: samples[0].details["file"] for name, samples in results.items()}
    assert files == {"now": str(PACKAGE_PARENT / "hf_gpt_scratch" / "__init__.py"), "before": str(package)}


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="--rounds 0 measures nothing"):
        run_workers([], rounds=0, threads=1)

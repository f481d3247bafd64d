"""Proves that README's table of speed says what the recorded runs say, and nothing else."""

import json

import pytest

from hf_gpt_scratch.benchmarks.command import RESULTS
from hf_gpt_scratch.benchmarks.speed_table import HEAD, speed_table


MARKS = "<!-- speed -->", "<!-- end of speed -->"


def report(times):
    machine = {"date": "2026-01-02", "threads": 2, "processor": "A CPU"}
    comparison = {"peer": "nanoGPT", "figure": "wall", "times": times, "memory": 1.5}
    return {"benchmark": "train", "setting": "small", "machine": machine, "comparisons": [comparison]}


def test_a_row_for_each_peer_in_the_order_of_the_files(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(report([1, 2, 3])))
    (tmp_path / "a.json").write_text(json.dumps(report([1.104, 1.2, 1.3])))
    assert speed_table(tmp_path).splitlines() == [
        *HEAD.splitlines(),
        "| train: small | nanoGPT | 1.10 / 1.20 / 1.30 (wall) | 1.50 | 2026-01-02, 2 threads, A CPU |",
        "| train: small | nanoGPT | 1.00 / 2.00 / 3.00 (wall) | 1.50 | 2026-01-02, 2 threads, A CPU |",
    ]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json is no report"):
        speed_table(tmp_path)


def test_readme_has_the_table_of_the_recorded_runs(project_root):
    readme = (project_root / "README.md").read_text(encoding="utf-8")
    before, mark, rest = readme.partition(MARKS[0])
    if not mark:
        pytest.skip("README has no table yet")
    assert rest.partition(MARKS[1])[0].strip() == speed_table(RESULTS)

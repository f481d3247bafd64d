"""Proves that the tables of speed say what the recorded runs say, and nothing else."""

import json
import subprocess
import sys

import pytest

from scripts.benchmarks.command import RESULTS
from scripts.benchmarks.speed_table import MARKS, speed_tables


def report(times, **more):
    machine = {"date": "2026-01-02", "threads": 2, "processor": "A CPU"}
    comparison = {"peer": "nanoGPT", "figure": "wall", "times": times, "memory": 1.5}
    limit = {"text": "wall time, nanoGPT / ours", "bound": "at least", "limit": 1.2, "reached": times}
    limits = [limit | {"met": times[1] >= 1.2}]
    return {
        "benchmark": "train",
        "setting": "small",
        "machine": machine,
        "limits": limits,
        "comparisons": [comparison | more],
    }


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "b.json").write_text(json.dumps(report([1, 2, 3], fraction=0.912)))
    (folder / "a.json").write_text(json.dumps(report([1.104, 1.19, 1.3])))
    return folder


LINES = """
| what | limit | reached, min / median / max | met |
| --- | --- | --- | --- |
| **train: small** (2026-01-02, 2 threads, A CPU) |  |  |  |
| wall time, nanoGPT / ours | at least 1.2 | 1.10 / 1.19 / 1.30 | **no** |
| **train: small** (2026-01-02, 2 threads, A CPU) |  |  |  |
| wall time, nanoGPT / ours | at least 1.2 | 1.00 / 2.00 / 3.00 | yes |

<details><summary>Every candidate</summary>

| candidate | its time / ours, min / median / max | its memory / ours | of the machine's limit |
| --- | --- | --- | --- |
| **train: small** (2026-01-02, 2 threads, A CPU) |  |  |  |
| nanoGPT | 1.10 / 1.19 / 1.30 (wall) | 1.50 |  |
| **train: small** (2026-01-02, 2 threads, A CPU) |  |  |  |
| nanoGPT | 1.00 / 2.00 / 3.00 (wall) | 1.50 | 0.91 |

</details>""".strip()


def test_limits_and_candidates_in_the_order_of_the_files(folder):
    assert speed_tables(folder) == LINES


def test_a_sweep_is_listed_with_the_best_first(tmp_path):
    runs = {"a": (2.0, 1.0), "b": (1.9, 3.25)}
    candidates = {
        name: [{"details": {"bits per byte": bits, "epochs": epochs}}] for name, (bits, epochs) in runs.items()
    }
    machine = {"date": "2026-01-02", "threads": 2, "processor": "A CPU"}
    sweep = {"benchmark": "sweep", "setting": "a text", "machine": machine, "candidates": candidates, "limits": []}
    (tmp_path / "a.json").write_text(json.dumps(sweep))
    assert "| b | 1.900 | 1.000 | 3.2 |\n| a | 2.000 | 1.053 | 1.0 |" in speed_tables(tmp_path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json is not a report"):
        speed_tables(tmp_path)


def test_the_command_writes_between_the_marks_and_nowhere_else(project_root, folder, tmp_path):
    readme = tmp_path / "README.md"
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "table", "--dir", folder, "--write", readme]
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    for _ in range(2):  # the second changes nothing
        subprocess.run(command, check=True, timeout=60)
        assert readme.read_text() == f"before\n{MARKS[0]}\n{LINES}\n{MARKS[1]}\nafter\n"
    readme.write_text(f"{MARKS[1]}\n{MARKS[0]}\n")
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert "has no lines" in process.stderr


def test_the_results_have_the_tables_of_the_recorded_runs():
    _, mark, rest = (RESULTS / "README.md").read_text(encoding="utf-8").partition(MARKS[0])
    assert mark
    assert rest.partition(MARKS[1])[0].strip() == speed_tables(RESULTS)

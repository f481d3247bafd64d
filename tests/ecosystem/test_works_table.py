"""Proves that README's table says what the recorded run found, that the run had every test that claims something, and
that it used the pinned versions.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ecosystem.works_table import HEAD, README, RESULTS, with_table, works_table


PASSED = {"package": "b", "version": "2.0", "what": "one thing", "outcome": "passed"}


def claims(folder: Path, root: Path) -> dict[str, tuple[str, str]]:
    """What the tests of a folder say that they prove, package and what, by their ids."""
    found = {}
    for path in folder.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", []):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.works":
                    arguments = tuple(ast.literal_eval(argument) for argument in decorator.args)
                    found[f"{path.relative_to(root).as_posix()}::{node.name}"] = arguments
    return found


def said_by(rows: dict[str, dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {name: (row["package"], row["what"]) for name, row in rows.items()}


@pytest.fixture
def recorded() -> dict[str, dict[str, str]]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_what_did_not_pass_is_not_said_to_work():
    rows = {
        "1": PASSED, "2": PASSED | {"what": "another"}, "3": PASSED | {"what": "a third", "outcome": "failed"},
        "4": PASSED | {"package": "a", "outcome": "skipped"},
    }  # fmt: skip
    assert works_table(rows).splitlines() == [
        *HEAD.splitlines(),
        "| a | 2.0 | one thing | **not run** |",
        "| b | 2.0 | one thing; another | works |",
        "| b | 2.0 | a third | **fails** |",
    ]


def test_readme_has_the_table_of_the_recorded_run(recorded):
    readme = README.read_text(encoding="utf-8")
    assert with_table(readme, recorded) == readme
    recorded.pop(next(iter(recorded)))
    assert with_table(readme, recorded) != readme  # the control


def test_the_record_has_every_test_that_claims_something(recorded, project_root):
    assert said_by(recorded) == claims(Path(__file__).parent, project_root)


def test_the_record_is_of_the_pinned_versions(recorded, project_root):
    pins = (project_root / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", pins, flags=re.MULTILINE))
    for row in recorded.values():
        assert row["version"].partition("+")[0] == pinned[row["package"]]


TESTS = """
import pytest

@pytest.mark.works("pytest", "this")
def test_that_passes(): pass

@pytest.mark.works("pytest", "that")
def test_that_fails(): raise ValueError

@pytest.mark.works("pytest", "what a fixture forbids")
def test_that_is_skipped(forbidding): pass

@pytest.fixture
def forbidding(): pytest.skip("no")

@pytest.mark.works("no-such-package", "its end")
def test_that_fails_at_its_end(broken): pass

@pytest.fixture
def broken():
    yield
    raise ValueError

def test_that_claims_nothing(): pass
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_the_recorder(tmp_path, processes):
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = works\n")
    options = ["-n", processes, "-p", "works_table", "--ecosystem-results", "found.json"]
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=tmp_path, env=environment, capture_output=True, timeout=240
    )
    rows = json.loads((tmp_path / "found.json").read_text())
    assert {row["what"]: row["outcome"] for row in rows.values()} == {
        "this": "passed", "that": "failed", "what a fixture forbids": "skipped", "its end": "failed",
    }  # fmt: skip
    assert said_by(rows) == claims(tmp_path, tmp_path)
    assert rows["test_it.py::test_that_passes"]["version"] == pytest.__version__
    assert rows["test_it.py::test_that_fails_at_its_end"]["version"] == "none"

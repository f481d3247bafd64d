"""Proves that README's table says what the recorded runs found, that they had every test that claims something, and
that they used the pinned versions.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.environments import pinned_version
from tests.works_table import HEAD, README, RESULTS, recorded_rows, with_table, works_table


PASSED = {"package": "b", "version": "2.0", "what": "one thing", "outcome": "passed"}


def claims(folder: Path, root: Path) -> dict[str, tuple[str, str]]:
    """What the tests of a folder say that they prove, package and what, by their ids without parameters."""
    found = {}
    for path in folder.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", []):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.works":
                    arguments = tuple(ast.literal_eval(argument) for argument in decorator.args)
                    found[f"{path.relative_to(root).as_posix()}::{node.name}"] = arguments
    return found


def said_by(rows: dict[str, dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {name.partition("[")[0]: (row["package"], row["what"]) for name, row in rows.items()}


@pytest.fixture
def recorded() -> dict[str, dict[str, str]]:
    return recorded_rows()


def test_what_did_not_pass_is_not_said_to_work():
    rows = {
        "1": PASSED, "2": PASSED | {"what": "another"}, "3": PASSED | {"what": "a third", "outcome": "failed"},
        "4": PASSED | {"package": "a", "outcome": "skipped"}, "5[again]": PASSED,
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
    claimed = [claims(path.parent, project_root) for path in RESULTS]
    assert min(map(len, claimed)) > 0
    assert said_by(recorded) == {name: what for found in claimed for name, what in found.items()}


def test_the_record_is_of_the_pinned_versions(recorded, project_root):
    pins = (project_root / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", pins, flags=re.MULTILINE))
    for name, row in recorded.items():
        of_package = pinned.get if name.startswith("tests/ecosystem/") else pinned_version
        assert row["version"].partition("+")[0] == of_package(row["package"])


TESTS = """
import pytest

@pytest.mark.works("pytest", "this")
def test_that_passes(): pass

@pytest.mark.works("pytest", "that")
def test_that_fails(): raise ValueError

@pytest.mark.works("pytest", "what a fixture forbids")
def test_that_is_skipped(forbidding): pass

@pytest.mark.works("elsewhere", "a version of another environment")
def test_of_another_environment(request):
    request.node.user_properties.append(("version", "7.0"))

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
def test_the_recorder(tmp_path, project_root, processes):
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = works\n")
    other, earlier = "test_other.py::test_that_does_not_run", "test_it.py::test_that_fails"
    (tmp_path / "found.json").write_text(json.dumps({other: PASSED, earlier: PASSED}))
    options = ["-n", processes, "-p", "tests.works_table", "--works-results", "found.json"]
    environment = {"PYTHONPATH": str(project_root)}
    subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=tmp_path, env=environment, capture_output=True, timeout=240
    )
    rows = json.loads((tmp_path / "found.json").read_text())
    assert rows.pop(other) == PASSED
    assert {row["what"]: row["outcome"] for row in rows.values()} == {
        "this": "passed", "that": "failed", "what a fixture forbids": "skipped", "its end": "failed",
        "a version of another environment": "passed",
    }  # fmt: skip
    assert said_by(rows) == claims(tmp_path, tmp_path)
    assert rows["test_it.py::test_that_passes"]["version"] == pytest.__version__
    assert rows["test_it.py::test_of_another_environment"]["version"] == "7.0"
    assert rows["test_it.py::test_that_fails_at_its_end"]["version"] == "none"

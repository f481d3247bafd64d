"""Proves that each row of this folder's README names tests that exist, and the versions that these run with."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.browser.transformers_js import VERSION as TRANSFORMERS_JS


README = Path(__file__).with_name("README.md")
LINK = r"\[(test_\w+)\]\(([\w./]+)\)"


def rows(text: str) -> list[list[str]]:
    lines = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| what |", "| about |"))
    ]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def missing_tests(text: str, folder: Path) -> list[str]:
    """Links to tests and scripts that are not there, and rows without a test."""
    missing = [row[0] for row in rows(text) if not re.fullmatch(f"{LINK}(, {LINK})*", row[-1])]
    for name, place in re.findall(LINK, text):
        path = folder / place
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(name)
    missing += [place for place in re.findall(r"\(([\w./]+\.sh)\)", text) if not (folder / place).is_file()]
    return missing


def test_each_row_has_its_tests() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(rows(text)) > 30
    assert missing_tests(text, README.parent) == []


@pytest.mark.parametrize(
    "row",
    [
        "| a | b | [test_gone](test_beliefs.py) |",
        "| a | b | [test_gone](gone.py) |",
        "| a | b | none |",
        "| a | [b](../../findings/gone.sh) | [test_each_row_has_its_tests](test_beliefs.py) |",
    ],
)
def test_a_row_without_a_test_would_be_seen(row: str) -> None:
    assert len(missing_tests(row, README.parent)) == 1


def test_versions_are_those_of_ci_and_of_the_engines(project_root: Path) -> None:
    """Each engine has an environment of its own, with other versions; what CI installs counts for the rest. What was
    seen by hand has no pin.
    """
    pins = (project_root / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    engines = json.loads((project_root / "tests" / "engines" / "environments.json").read_text(encoding="utf-8"))
    of_engines = [pin for engine in engines.values() for pin in engine["requirements"]]
    pinned = {name.replace("-", "_"): version for name, version in (
        pin.split("==") for pin in (*of_engines, *pins) if re.fullmatch(r"[\w-]+==\S+", pin)
    )}  # fmt: skip
    pinned["transformers.js"] = TRANSFORMERS_JS
    cells = [row[-2].split(", ") for row in rows(README.read_text(encoding="utf-8"))]
    named = {part for cell in cells for part in cell if not part.startswith("by hand: ")} - {"GPT-2"}
    found = {part: pinned.get(part.split()[0].replace("-", "_")) for part in named}
    assert found == {part: part.split()[1] for part in named}

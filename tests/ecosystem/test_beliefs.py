"""Proves that each row of this folder's README names tests that exist, and versions that CI installs."""

import ast
import re
from pathlib import Path

import pytest


README = Path(__file__).with_name("README.md")
LINK = r"\[(test_\w+)\]\(([\w./]+)\)"


def rows(text: str) -> list[list[str]]:
    lines = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| what |", "| about |"))
    ]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def missing_tests(text: str, folder: Path) -> list[str]:
    """Links to tests that are not there, and rows without one."""
    missing = [row[0] for row in rows(text) if not re.fullmatch(f"{LINK}(, {LINK})*", row[-1])]
    for name, place in re.findall(LINK, text):
        path = folder / place
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(name)
    return missing


def test_each_row_has_its_tests() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(rows(text)) > 30
    assert missing_tests(text, README.parent) == []


@pytest.mark.parametrize(
    "row", ["| a | b | [test_gone](test_beliefs.py) |", "| a | b | [test_gone](gone.py) |", "| a | b | none |"]
)
def test_a_row_without_a_test_would_be_seen(row: str) -> None:
    assert len(missing_tests(row, README.parent)) == 1


def test_versions_are_those_of_ci(project_root: Path) -> None:
    pins = (project_root / ".ci" / "constraints.txt").read_text(encoding="utf-8").replace("-", "_")
    pinned = dict(re.findall(r"^(\w+)==(\S+)$", pins, flags=re.MULTILINE))
    named = {part for row in rows(README.read_text(encoding="utf-8")) for part in row[-2].split(", ")} - {"GPT-2"}
    assert {part: pinned.get(part.split()[0]) for part in named} == {part: part.split()[1] for part in named}

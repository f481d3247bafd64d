"""Holds the words: docstrings begin with an imperative or a noun, and the spelling is American."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readme import READMES, ROOT


MODULES = sorted(path for folder in ("hf_gpt_scratch", "scripts") for path in (ROOT / folder).rglob("*.py"))
TEXTS = [
    *MODULES,
    *READMES,
    ROOT / "CHANGELOG.md",
    ROOT / "pyproject.toml",
    *sorted((ROOT / "model_cards").glob("*.md")),
    *sorted((ROOT / "hf_gpt_scratch" / "assets").rglob("*.md")),
]
OPENING = re.compile(r"(What|Whether|How|Where|Which|Who|That)\b")
STEMS = (
    "final|general|initial|maxim|minim|normal|optim|organ|parallel|quant|real|recogn|regular|serial|special|summar|"
    "synchron|token|util|visual"
)
BRITISH = re.compile(
    rf"\w*({STEMS})is(e|ed|es|er|ers|ing|ation|ations)\b|licence|colour|behaviour|favour|neighbour|honour|\bcentre|\bgrey\b|"
    r"artefact|analyse|catalogue|labell(?=ed|ing)|modell(?=ed|ing)|signall(?=ed|ing)|travell(?=ed|ing)|\bprogramme\b|judgement",
    flags=re.IGNORECASE,
)


def wrong_openings(source: str) -> Iterator[str]:
    """Yield the first lines of docstrings that begin with a question word."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if OPENING.match(docstring):
                yield docstring.splitlines()[0]


def british(text: str) -> list[str]:
    """Return the words that are spelled the British way."""
    return [match.group() for match in BRITISH.finditer(text)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_begin_with_an_imperative_or_a_noun(path: Path) -> None:
    assert list(wrong_openings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_spelling_is_american(path: Path) -> None:
    assert british(path.read_text(encoding="utf-8")) == []


def test_wrong_words_are_found() -> None:
    """The control."""
    assert list(wrong_openings('"""What it is."""\ndef f():\n    """Return it. What else?"""')) == ["What it is."]
    text = "Tokenised colours, a LICENCE, its neighbour; an optimistic realist tokenizes the center of a model."
    assert british(text) == ["Tokenised", "colour", "LICENCE", "neighbour"]

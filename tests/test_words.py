"""Holds the words: how docstrings begin, word order is plain, and the spelling is American."""

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
NOUN = re.compile(r"(The|An?|All)\b")  # a function does something; a class, a module or a property may be named
# "X is no Y" for "X is not a Y". "There is no" and "is no more than" are plain.
REVERSED = re.compile(r"(?<!there )\b(?:is|are) no\b(?! (?:more|less|longer)\b)|\banew\b", flags=re.IGNORECASE)
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
    """Yield the first lines of docstrings that begin with a question word, or of functions with a noun."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            is_named = isinstance(node, ast.Module | ast.ClassDef) or any(
                "property" in ast.unparse(decorator) for decorator in node.decorator_list
            )
            if OPENING.match(docstring) or (not is_named and NOUN.match(docstring)):
                yield docstring.splitlines()[0]


def reversed_words(source: str) -> Iterator[str]:
    """Yield what docstrings and messages say in a word order, or a word, that a newcomer stumbles over."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (match.group() for match in REVERSED.finditer(" ".join(node.value.split())))


def british(text: str) -> list[str]:
    """Return the words that are spelled the British way."""
    return [match.group() for match in BRITISH.finditer(text)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_begin_with_an_imperative_or_a_noun(path: Path) -> None:
    assert list(wrong_openings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_word_order_is_plain(path: Path) -> None:
    assert list(reversed_words(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_spelling_is_american(path: Path) -> None:
    assert british(path.read_text(encoding="utf-8")) == []


def test_wrong_words_are_found() -> None:
    """The control."""
    assert list(wrong_openings('"""What it is."""\ndef f():\n    """Return it. What else?"""')) == ["What it is."]
    assert list(wrong_openings('def f():\n    """The sum."""\nclass C:\n    """A thing."""')) == ["The sum."]
    assert list(wrong_openings('class C:\n    @property\n    def f(self):\n        """The sum."""')) == []
    messages = 'f"{x} is no file of {y}"; "values are\\nno ids"; "made anew"; "there is no file, it is no longer here"'
    assert sorted(reversed_words(messages)) == ["anew", "are no", "is no"]
    text = "Tokenised colours, a LICENCE, its neighbour; an optimistic realist tokenizes the center of a model."
    assert british(text) == ["Tokenised", "colour", "LICENCE", "neighbour"]

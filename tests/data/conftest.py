"""A small corpus of all kinds of text, and what plain tiktoken and numpy make of it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.data.document_sources import Source, file_sources
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from tests.data.plain_tokens import plain_tokens


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """60 documents: from one token to 3,000, one with the separator written out, one of them twice."""
    story = bundled_text_path().read_text(encoding="utf-8")
    generator = random.Random(3)
    starts = [generator.randrange(len(story) - 400) for _ in range(57)]
    texts = [story[start : start + generator.randrange(1, 400)].strip() or "x" for start in starts]
    return [*texts[:20], story[:12000], *texts[20:], "Written <|endoftext|> out: über 日本語", texts[0]]


@pytest.fixture(scope="session")
def corpus(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The documents in their order: text files, then JSON lines with empty documents among them."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(documents[:22]):
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    rows = [line for text in documents[22:] for line in ({"text": text}, {"text": " \n"})]
    (folder / "rest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [folder]


@pytest.fixture
def sources(corpus: list[Path]) -> list[Source]:
    return file_sources(corpus, None, 1, lambda num_bytes: None)


@pytest.fixture(scope="session")
def expected(documents: list[str]) -> np.ndarray:
    return np.array(plain_tokens(documents), np.uint16)

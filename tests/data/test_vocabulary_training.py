"""Proves the training of a vocabulary: the merges of another trainer, and a bounded, even sample."""

import gzip
import io
import json
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex

from hf_gpt_scratch.data import vocabulary_training
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, byte_alphabet, named_vocabulary
from hf_gpt_scratch.data.vocabulary_training import Quota, TextSample, bytes_per_token, train_vocabulary


STORY = bundled_text_path().read_text(encoding="utf-8")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of encoder.py


def plain_merges(text: str, num_merges: int) -> list[tuple[str, str]]:
    """Plain byte-pair encoding: the most frequent pair; of equally frequent ones, that of the lowest ids."""
    char_of = {byte: char for char, byte in byte_alphabet().items()}
    ids = {char: number for number, char in enumerate(byte_alphabet())}
    words = Counter(tuple(char_of[byte] for byte in word.encode()) for word in regex.findall(GPT2_PATTERN, text))
    merges = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids["".join(best)] = len(ids) + 1  # <|endoftext|> has one too
        words = Counter({join(word, best): count for word, count in words.items()})
    return merges


def join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts, place = [], 0
    while place < len(word):
        step = 2 if word[place : place + 2] == pair else 1
        parts.append("".join(word[place : place + step]))
        place += step
    return tuple(parts)


def test_merges_are_those_of_plain_byte_pair_encoding() -> None:
    vocabulary = train_vocabulary(TextSample([bundled_text_path()]), 257 + 100)
    assert list(vocabulary.merges) == plain_merges(STORY, 100)
    assert vocabulary.tokens == (*byte_alphabet(), *map("".join, vocabulary.merges), END_OF_TEXT)
    assert (vocabulary.size, vocabulary.end_of_text_id, vocabulary.name) == (357, 356, "own")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    """The bar of the reading, and the library's own of the joining, which it writes past Python."""
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", shown)
    asked: list[bool] = []
    trainer = vocabulary_training.trainers.BpeTrainer

    def watched(show_progress: bool, **kwargs: object) -> object:
        asked.append(show_progress)
        return trainer(show_progress=False, **kwargs)

    monkeypatch.setattr(vocabulary_training.trainers, "BpeTrainer", watched)
    train_vocabulary(TextSample([bundled_text_path()]), 300)
    assert asked == [is_terminal]
    assert ("counting words" in shown.getvalue()) is is_terminal
    if is_terminal:
        assert "/21.4k" in shown.getvalue()  # bytes of the story


def test_smallest_vocabulary_is_that_of_bytes(tmp_path: Path) -> None:
    assert train_vocabulary(TextSample([bundled_text_path()]), 257) is named_vocabulary("bytes")
    (tmp_path / "few.txt").write_text("ab ab ab cd", encoding="utf-8")
    few = train_vocabulary(TextSample([tmp_path / "few.txt"]), 1000)
    assert few.merges == (("a", "b"), ("Ġ", "ab"))


def test_written_separator_is_no_word(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"x{END_OF_TEXT}" * 50}), encoding="utf-8")
    assert train_vocabulary(TextSample([tmp_path / "a.jsonl"]), 300) is named_vocabulary("bytes")


@pytest.fixture
def kinds(tmp_path: Path) -> list[Path]:
    """The story four times: as text, packed, as rows and as packed rows, some of them bad."""
    rows = "\n".join([*(json.dumps({"text": part}) for part in STORY.split("\n\n")), '{"other": 1}', "no JSON"])
    contents = {
        "a.txt": STORY.encode(),
        "b.txt.gz": STORY.encode(),
        "c.jsonl": rows.encode(),
        "d.ndjson.gz": rows.encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return [tmp_path / name for name in contents]


def test_all_kinds_of_texts_are_read_and_bad_rows_counted(kinds: list[Path]) -> None:
    sample = TextSample(kinds)
    text = "".join(sample)
    assert text.count(STORY[:60]) == 4
    assert len(text) == 2 * len(STORY) + 2 * len(STORY.replace("\n\n", ""))
    assert sample.skipped.count == 4
    assert str(sample.skipped.first).startswith(f"{kinds[2]} line ")


@pytest.mark.parametrize("sample_bytes", [100, 3000, 20_000])
def test_sample_is_bounded_even_and_the_same_again(kinds: list[Path], sample_bytes: int) -> None:
    sample = TextSample(kinds, sample_bytes=sample_bytes)
    blocks = list(sample)
    size = sum(len(block.encode()) for block in blocks)
    assert 0.5 * sample_bytes < size <= sample_bytes
    assert blocks == list(TextSample(kinds, sample_bytes=sample_bytes))
    assert "".join(sample.measured) == "".join(blocks)


def test_sample_comes_from_all_parts_of_a_text(tmp_path: Path) -> None:
    parts = [f"part{number} " * 1000 for number in range(10)]
    (tmp_path / "a.txt").write_text("".join(parts), encoding="utf-8")
    taken = Counter(re.findall(r"part\d", "".join(TextSample([tmp_path / "a.txt"], sample_bytes=8000))))
    assert set(taken) == {f"part{number}" for number in range(10)}
    assert max(taken.values()) < 3 * min(taken.values())


def test_quota_takes_as_much_as_its_share() -> None:
    quota = Quota(100)
    assert [quota.takes(30, share) for share in (0.1, 0.3, 0.5, 0.6, 1.0, 1.0)] == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert quota.taken == 90


def test_bytes_of_a_token_are_those_of_tiktoken() -> None:
    assert bytes_per_token([STORY], "gpt2") == len(STORY.encode()) / len(load_encoding().encode_ordinary(STORY))
    assert bytes_per_token([STORY, "ü"], "bytes") == 1


def test_broken_file_and_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine \xff")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 at byte 5"):
        train_vocabulary(TextSample([tmp_path / "a.txt"]), 300)
    (tmp_path / "b.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(ValueError, match=r"the sources hold no text; 1 bad rows, the first: .*b\.jsonl line 1"):
        train_vocabulary(TextSample([tmp_path / "b.jsonl"]), 300)


def test_text_that_is_a_small_share_is_text(tmp_path: Path) -> None:
    """Rows without the column follow it; the part that is measured once stayed empty."""
    (tmp_path / "a.txt").write_text(STORY, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"other": "x y z"}\n' * 100_000, encoding="utf-8")
    sample = TextSample([tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert "".join(sample) == STORY
    assert sample.measured
    assert sample.skipped.count == 100_000

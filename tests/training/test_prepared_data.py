"""Proves that the loop trains on prepared shards as on the same text, and says what does not go together."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.data.document_sources import file_sources
from hf_gpt_scratch.data.preparation.prepare import Choices, prepare
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import encode_text
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.reporting.card import describe_texts
from hf_gpt_scratch.training.run import read_tokens
from hf_gpt_scratch.training.settings import TrainingSettings


@pytest.fixture
def tokens(short_text: Path, tmp_path: Path) -> str:
    """The short text, to train and to validate on, in shards of 100 tokens."""
    sources = file_sources([short_text], None, 1, lambda num_bytes: None)
    validation = file_sources([short_text], "validation", 1, lambda num_bytes: None)
    prepare(tmp_path / "tokens", [*sources, *validation], Choices(shard_tokens=100), 1, lambda line: None)
    return str(tmp_path / "tokens")


def test_rows_are_trained_on_by_their_text_and_not_by_their_json(
    tiny_settings: Callable[..., TrainingSettings], short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The tokens of a folder of JSON lines, packed too, are those of its texts; what was found is said once."""
    paragraphs = short_text.read_text(encoding="utf-8").split("\n\n")
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, part, pack in (("a.jsonl", paragraphs[:3], bytes), ("b.JSONL.gz", paragraphs[3:], gzip.compress)):
        (folder / name).write_bytes(pack("\n".join(json.dumps({"story": text}) for text in part).encode()))
    (folder / "notes.json").write_text("{}")
    encoding = load_encoding()
    settings = tiny_settings(train_file=[str(folder)], validation_file=[str(short_text)], text_column="story")
    training, validation = read_tokens(settings, encoding)
    assert training.tolist() == encode_text("<|endoftext|>".join(paragraphs), encoding).tolist()
    assert validation.tolist() == encode_text(short_text.read_text(encoding="utf-8"), encoding).tolist()
    assert capsys.readouterr().err == f"{folder}: 2 files taken; passed over: 1 .json\n"
    assert [text["name"] for text in describe_texts(settings)] == ["a.jsonl", "b.JSONL.gz", "short.txt"]
    assert capsys.readouterr().err == ""


def test_prepared_tokens_are_trained_on_like_the_same_text(
    tiny_settings: Callable[..., TrainingSettings], short_text: Path, tokens: str, tmp_path: Path
) -> None:
    """Without any learning the losses are those of the text, but for the <|endoftext|> after it."""

    def losses(name: str, **changes: object) -> tuple[float, float]:
        still = {"max_steps": 1, "learning_rate": 0.0, "min_learning_rate": 0.0, "warmup_steps": 0}
        result = train(tiny_settings(**still, **changes, output_dir=str(tmp_path / name)))
        return result.train_loss, result.validation_loss

    text = losses("text", train_file=[str(short_text)], validation_file=[str(short_text)])
    shards = losses("shards", train_file=None, train_data=tokens)
    assert shards == pytest.approx(text, rel=1e-3)
    assert shards != text
    # One document and nothing to keep it apart from; and validation on a text beside shards.
    apart = losses("apart", train_file=None, train_data=tokens, separate_documents=True)
    assert apart == pytest.approx(shards, rel=1e-6)
    mixed = losses("mixed", train_file=None, train_data=tokens, validation_file=[str(short_text)])
    assert mixed == (shards[0], text[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "give --train_file or --train_data, not both"),
        ({"train_file": None, "vocabulary": "bytes"}, "--train_data holds GPT-2's tokens: --vocabulary bytes needs"),
        ({"train_file": None, "data_order": "torch_dataloader"}, "with --train_data use seeded"),
    ],
)
def test_contradictions_are_one_line(
    tiny_settings: Callable[..., TrainingSettings], changes: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_settings(train_data="tokens", **changes)


def test_folder_that_is_not_prepared_leaves_nothing_behind(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="holds no prepared data"):
        train(tiny_settings(train_file=None, train_data=str(tmp_path)))
    assert not (tmp_path / "run").exists()

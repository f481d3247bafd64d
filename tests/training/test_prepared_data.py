"""Proves that the loop trains on prepared shards as on the same text, and says what does not go together."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.preparation.document_sources import file_sources
from hf_gpt_scratch.preparation.prepare import Choices, prepare
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings


@pytest.fixture
def tokens(short_text: Path, tmp_path: Path) -> str:
    """The short text, to train and to validate on, in shards of 100 tokens."""
    sources = file_sources([short_text], None, 1, lambda num_bytes: None)
    validation = file_sources([short_text], "validation", 1, lambda num_bytes: None)
    prepare(tmp_path / "tokens", [*sources, *validation], Choices(shard_tokens=100), 1, lambda line: None)
    return str(tmp_path / "tokens")


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

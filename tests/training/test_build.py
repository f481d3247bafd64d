"""Proves that a run is built from texts and prepared tokens alike, or refused with nothing left behind."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hf_gpt_scratch.data.document_sources import file_sources
from hf_gpt_scratch.data.preparation.prepare import Choices, prepare
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import encode_text
from hf_gpt_scratch.training import build, loop
from hf_gpt_scratch.training.build import read_tokens
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.reporting.card_sections import describe_texts
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


def test_texts_that_may_not_fit_are_named_with_the_way_out(
    tiny_settings: Callable[..., TrainingSettings],
    short_text: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = 6 * short_text.stat().st_size
    for free, is_short in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        read_tokens(tiny_settings(), load_encoding("gpt2"))
        assert ("make shards of them" in capsys.readouterr().err) == is_short


def test_text_that_is_trained_on_and_validated_on_is_named(
    tiny_settings: Callable[..., TrainingSettings], short_text: Path, tokens: str, capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(validation_file=[str(short_text)])
    read_tokens(settings, load_encoding("gpt2"))
    assert capsys.readouterr().err.startswith(f"warning: {short_text}: trained on too")
    read_tokens(replace(settings, train_file=None, train_data=tokens), load_encoding("gpt2"))
    assert "trained on too" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["train_file", "train_data"])
def test_column_of_rows_is_refused_where_there_are_none(
    tiny_settings: Callable[..., TrainingSettings], tokens: str, source: str
) -> None:
    settings = tiny_settings(
        text_column="story", **({"train_file": None, "train_data": tokens} if source == "train_data" else {})
    )
    with pytest.raises(ValueError, match="--text_column story would do nothing"):
        read_tokens(settings, load_encoding("gpt2"))


def test_prepared_tokens_are_trained_on_like_the_same_text(
    tiny_settings: Callable[..., TrainingSettings], short_text: Path, tokens: str, tmp_path: Path
) -> None:
    """Without any learning the losses are those of the text, but for the <|endoftext|> after it."""

    def losses(name: str, **changes: object) -> tuple[float, float]:
        still = {"max_steps": 1, "learning_rate": 0.0, "min_learning_rate": 0.0, "warmup_steps": 0, "eval_iter": 0}
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
        ({"train_file": None, "data_order": "torch_dataloader"}, "with --train_data use seeded"),
    ],
)
def test_contradictions_are_one_line(
    tiny_settings: Callable[..., TrainingSettings], changes: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_settings(train_data="tokens", **changes)


def test_tokens_of_another_vocabulary_are_refused(
    tiny_settings: Callable[..., TrainingSettings], tokens: str, tmp_path: Path
) -> None:
    settings = tiny_settings(train_file=None, train_data=tokens, vocabulary="bytes")
    for run in (train, dry_run):
        with pytest.raises(
            ValueError, match=r"of another vocabulary, gpt2 \(50,257 .*, and not of bytes \(257 tokens"
        ):
            run(settings)
    assert not (tmp_path / "run").exists()


def test_folder_that_is_not_prepared_leaves_nothing_behind(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="holds no prepared data"):
        train(tiny_settings(train_file=None, train_data=str(tmp_path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_file": ["missing.txt"]}, "missing.txt does not exist"),
        ({"max_position_embeddings": 900}, "has 5[0-9][0-9] tokens and needs 901 for one window"),
        (
            {"train_split": 0.9999},
            "the validation text is too short after --train_split 0.9999: it has 1 tokens .* a longer text$",
        ),
        ({"resume": True}, "holds no valid checkpoint"),
        ({"drop_last": True, "per_device_train_batch_size": 99}, "windows, but with --drop_last one step needs 99"),
        ({"mixed_precision": "fp16"}, "fp16"),
        ({"attn_implementation": "flash_attention_2"}, "(?i)flash"),
        ({"report_to": ["nothing-like-it"]}, "nothing-like-it"),
        ({"sample_prompt": "word " * 40}, "sample_prompt"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tiny_settings: Callable[..., TrainingSettings], changes: dict, reason: str
) -> None:
    settings = tiny_settings(**changes)
    with pytest.raises((ValueError, OSError, ImportError), match=reason):
        train(settings)
    assert not Path(settings.output_dir).exists()


@pytest.mark.parametrize(
    "was_there", ["nothing", "folder with lock", pytest.param("folder", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize(
    "place",
    [
        "evaluate",
        "describe",
        *(pytest.param(p, marks=pytest.mark.nightly) for p in ("optimizer_step", "start_trackers")),
    ],
)
def test_run_that_fails_before_its_first_step_leaves_nothing_behind(
    tiny_settings: Callable[..., TrainingSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    was_there: str,
) -> None:
    settings = tiny_settings(output_dir=str(tmp_path / "new" / "run"), report_to=["tensorboard"])
    folder = Path(settings.output_dir)
    if was_there != "nothing":
        folder.mkdir(parents=True)
    if was_there == "folder with lock":
        (folder / ".lock").touch()
    before = sorted(tmp_path.rglob("*"))

    def fail(*_: object) -> None:
        assert (folder / "settings.json").is_file()
        raise RuntimeError("not to be foreseen")

    with monkeypatch.context() as patch:
        patch.setattr(build if place == "describe" else loop, place, fail)
        with pytest.raises(RuntimeError, match="not to be foreseen"):
            train(settings)
    assert sorted(tmp_path.rglob("*")) == before
    train(settings)  # the corrected command


def test_run_that_fails_before_its_first_step_deletes_nothing_of_others(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings()
    folder = Path(settings.output_dir)

    def fail(*_: object) -> None:
        (folder / "notes.txt").write_text("of somebody else", encoding="utf-8")
        (folder / "logs").mkdir()
        raise RuntimeError("not to be foreseen")

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(RuntimeError, match="not to be foreseen"):
        train(settings)
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "notes.txt"]


def test_refused_start_takes_its_lock_back(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError):
        train(tiny_settings(train_file=["missing.txt"]))
    assert list((tmp_path / "run").iterdir()) == []


def test_used_folder_is_never_written_into(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    settings = tiny_settings(max_steps=3, warmup_steps=0)
    train(settings)
    before = sorted(Path(settings.output_dir).rglob("*"))
    with pytest.raises(FileExistsError, match="holds another run: continue it with --resume"):
        train(settings)
    assert sorted(Path(settings.output_dir).rglob("*")) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(FileExistsError, match="is not empty"):
        train(tiny_settings(output_dir=str(tmp_path / "photos")))
    with pytest.raises(NotADirectoryError, match="is a file"):
        train(tiny_settings(output_dir=str(tmp_path / "photos" / "cat.jpg")))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]

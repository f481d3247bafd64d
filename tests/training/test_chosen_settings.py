"""Proves what `--minutes` chooses: what it leaves alone, what it says, and that a resumed run keeps it."""

import json
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch.training import chosen_settings
from hf_gpt_scratch.training.chosen_settings import Means, fit_to_memory, model_shape
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import CHOSEN_BY_MINUTES, RATES, TrainingSettings


SHAPE = {"hidden_size", "num_hidden_layers", "num_attention_heads"}


@pytest.mark.parametrize(
    ("words", "stays"),
    [
        ("", set()),
        ("--hidden_size 64", {"hidden_size"}),
        ("--learning_rate 1e-3", set(RATES)),
        ("--optim adamw_torch", set(RATES)),
        ("--dropout 0.3 --vocabulary gpt2", {"dropout", "vocabulary"}),
        ("--train_data tokens", {"vocabulary"}),
        ("--recipe char-small", set(CHOSEN_BY_MINUTES)),
        ("--model_name_or_path mine", set(CHOSEN_BY_MINUTES)),
        ("--choose none", set(CHOSEN_BY_MINUTES)),
        ("--choose dropout", set(CHOSEN_BY_MINUTES) - {"dropout"}),
    ],
)
def test_what_is_given_is_not_chosen(words: str, stays: set[str]) -> None:
    settings = parse_settings(["--minutes", "1", *words.split()])
    assert set(settings.choose or []) == set(CHOSEN_BY_MINUTES) - stays


def test_without_minutes_nothing_is_chosen() -> None:
    assert parse_settings([]).choose is None
    with pytest.raises(ValueError, match="--choose dropout needs --minutes"):
        parse_settings(["--choose", "dropout"])
    with pytest.raises(ValueError, match="--choose seed is not one of vocabulary, hidden_size"):
        parse_settings(["--minutes", "1", "--choose", "seed"])
    with pytest.raises(ValueError, match="leaves out some of optim, learning_rate, min_learning_rate"):
        parse_settings(["--minutes", "1", "--choose", "learning_rate"])
    with pytest.raises(ValueError, match="for fresh models"):
        parse_settings(["--minutes", "1", "--choose", "dropout", "--model_name_or_path", "mine"])


def test_the_launchers_precision_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "mixed_precision" not in (parse_settings(["--minutes", "1"]).choose or [])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # also where nothing was said
    assert "mixed_precision" in (parse_settings(["--minutes", "1"]).choose or [])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 40 KB with words."""
    words = ["lamp", "light", "river", "stone", "garden", "window", "letter", "morning", "silence", "harbour"]
    lines = [" ".join(words[(row * step) % 10] for step in range(1, 9)) + ".\n" for row in range(1, 800)]
    (tmp_path / "text.txt").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "text.txt"


def bounded(text: Path, **more: object) -> TrainingSettings:
    words = [f"--{name}={value}" for name, value in {"sample_tokens": 0, "peak_flops": 1e11, **more}.items()]
    return parse_settings(["--train_file", str(text), "--output_dir", str(text.parent / "run"), "--use_cpu", *words])


def chosen_by_run(settings: TrainingSettings) -> dict:
    return json.loads(Path(settings.output_dir, "settings.json").read_text(encoding="utf-8"))


def test_a_run_takes_says_and_records_the_choice(text: Path, capsys: pytest.CaptureFixture) -> None:
    settings = bounded(text, minutes=0.1, dropout=0.25)
    train(settings)
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("--minutes 0.1 chooses"))
    recorded = chosen_by_run(settings)
    assert recorded["choose"] is None
    assert recorded["dropout"] == 0.25, "what is given stays"
    assert recorded["optim"] == "muon"
    for figure in (recorded["hidden_size"], recorded["num_hidden_layers"], recorded["max_position_embeddings"]):
        assert str(figure) in lines[first + 1]
    assert "muon" in lines[first + 2]
    assert Path(recorded["vocabulary"]) == Path(settings.output_dir, "vocabulary")
    config = json.loads(Path(settings.output_dir, "model", "config.json").read_text(encoding="utf-8"))
    assert config["hidden_size"] == recorded["hidden_size"]


def test_a_resumed_run_keeps_the_choice(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder was moved, the machine is faster and the rules are others."""
    settings = bounded(text, minutes=0.08)
    train(settings)
    begun = chosen_by_run(settings)
    moved = Path(settings.output_dir).rename(text.parent / "moved")
    monkeypatch.setattr(chosen_settings, "model_shape", lambda means, layers, heads: (1, 32))
    more = bounded(text, minutes=0.2, output_dir=moved, resume=True)
    train(more)
    assert {name: chosen_by_run(more)[name] for name in CHOSEN_BY_MINUTES if name != "vocabulary"} == {
        name: begun[name] for name in CHOSEN_BY_MINUTES if name != "vocabulary"
    }
    assert Path(chosen_by_run(more)["vocabulary"]) == moved / "vocabulary"


def test_dry_run_chooses_the_same_and_writes_nothing(text: Path, capsys: pytest.CaptureFixture) -> None:
    settings = bounded(text, minutes=0.1)
    dry_run(settings)
    said = capsys.readouterr().out.splitlines()[:3]
    assert not Path(settings.output_dir).exists()
    train(settings)
    assert capsys.readouterr().out.splitlines()[:3] == said


def test_a_run_that_cannot_begin_leaves_nothing(text: Path) -> None:
    text.write_text("a b", encoding="utf-8")
    settings = bounded(text, minutes=0.1)
    with pytest.raises(ValueError, match="text is too short"):
        train(settings)
    assert not Path(settings.output_dir).exists()


def long_text(flops: float) -> Means:
    return Means(10**12, "", flops)


@pytest.mark.parametrize("flops", [1e11, 1e13, 1e15, 1e17])
def test_more_computing_trains_larger_models(flops: float) -> None:
    (layers, width), (more_layers, more_width) = model_shape(long_text(flops)), model_shape(long_text(30 * flops))
    assert layers <= more_layers
    assert width < more_width
    assert model_shape(long_text(flops), layers=3)[0] == 3
    for heads in (5, 999, 10007):
        assert model_shape(long_text(flops), heads=heads)[1] % heads == 0, "a multiple of the heads that are given"


@pytest.mark.parametrize(("flops", "shape"), [(1e13, (2, 64)), (3e13, (2, 96)), (2.4e17, (8, 512))])
def test_the_layers_have_a_twentieth_of_the_tokens_as_parameters(flops: float, shape: tuple[int, int]) -> None:
    """By hand: a quarter of 3e13 FLOPs are 6 x 250,000 x 5,000,000; two layers of 96 have 221,184 parameters."""
    assert model_shape(long_text(flops)) == shape


def test_a_short_text_gets_a_small_model_on_a_fast_card() -> None:
    """As nanoGPT's recipe of a card: 6 layers of 384 for the 1.1 MB of Tiny Shakespeare."""
    assert model_shape(Means(1_115_394, "", 1e18)) == (6, 384)


@pytest.mark.parametrize(("width", "heads"), [(64, 2), (96, 3), (100, 2), (256, 4), (288, 6), (768, 12)])
def test_heads_are_32_or_64_wide(width: int, heads: int) -> None:
    assert chosen_settings.heads_for(width) == heads


@pytest.mark.parametrize(("passes", "dropout"), [(0.1, 0.0), (3, 0.0), (6, 0.1), (12, 0.2), (1e6, 0.6)])
def test_more_passes_drop_more(passes: float, dropout: float) -> None:
    assert chosen_settings.dropout_for(passes) == dropout


def test_more_text_and_larger_models_get_more_tokens() -> None:
    by_text = [chosen_settings.vocabulary_size(Means(10**digits, "", 1e13), 12, 768) for digits in range(1, 13)]
    by_model = [chosen_settings.vocabulary_size(Means(10**12, "", 1e13), 2, width) for width in range(32, 1600, 32)]
    for sizes in (by_text, by_model):
        assert sizes == sorted(sizes)
        assert len(set(sizes)) >= 4
        assert all(size == 2 ** (size.bit_length() - 1) for size in sizes)


def test_a_step_is_split_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = parse_settings(["--minutes", "1"])
    chosen = parse_settings(["--vocabulary", "bytes", "--hidden_size", "32", "--per_device_train_batch_size", "64"])
    device = torch.device("cpu")
    assert fit_to_memory(chosen, asked, device) == chosen
    needed = chosen_settings.estimate_memory(chosen.model_config(), chosen, device, "no")
    monkeypatch.setattr(chosen_settings.psutil, "virtual_memory", lambda: type("Free", (), {"available": needed}))
    split = fit_to_memory(chosen, asked, device)
    assert split.per_device_train_batch_size < 64
    assert split.per_device_train_batch_size * split.gradient_accumulation_steps == 64
    assert fit_to_memory(chosen, bounded_by_user(), device) == chosen


def bounded_by_user() -> TrainingSettings:
    return parse_settings(["--minutes", "1", "--per_device_train_batch_size", "64"])

"""Proves what `--minutes` chooses: what it leaves alone, what it says, and that a resumed run keeps it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.minutes import choose_settings
from hf_gpt_scratch.training.minutes.choose_settings import fit_to_memory, micro_batch
from hf_gpt_scratch.training.settings import CHOSEN_BY_MINUTES, RATES, TrainingSettings


@pytest.mark.parametrize(
    ("words", "stays"),
    [
        ("", set()),
        ("--hidden_size 64", {"hidden_size"}),
        ("--learning_rate 1e-3", set(RATES)),
        ("--optim adamw_torch", set(RATES)),
        ("--lr_scheduler_type cosine", set(RATES)),
        ("--dropout 0.3 --vocabulary gpt2", {"dropout", "vocabulary"}),
        ("--train_data tokens", {"vocabulary"}),
        ("--optimizer_in_backward --max_grad_norm 0", {"gradient_accumulation_steps"}),
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
    with pytest.raises(ValueError, match="leaves out some of optim, muon_momentum, learning_rate"):
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


def test_size_is_not_decided_in_one_bad_moment(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for measured in ([1e9, 3e11], [3e11, 1e9]):
        left = iter(measured)
        monkeypatch.setattr(choose_settings, "measure_peak_flops", lambda *arguments, left=left: next(left))
        budget = choose_settings.measure_budget(
            replace(bounded(text, minutes=2), peak_flops=None), PartialState(cpu=True)
        )
        assert budget.flops == 120 * 3e11


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
    assert [recorded[name] for name in RATES] == ["muon", 0.9, recorded["learning_rate"], 0.0, "linear"]
    for figure in (recorded["hidden_size"], recorded["num_hidden_layers"], recorded["max_position_embeddings"]):
        assert str(figure) in lines[first + 1]
    assert "muon" in lines[first + 2]
    assert Path(recorded["vocabulary"]) == Path(settings.output_dir, "vocabulary")
    config = json.loads(Path(settings.output_dir, "model", "config.json").read_text(encoding="utf-8"))
    assert config["hidden_size"] == recorded["hidden_size"]


def test_a_resumed_run_keeps_the_choice(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder was moved, the minutes are more and the rules are others."""
    settings = bounded(text, minutes=0.08)
    train(settings)
    begun = chosen_by_run(settings)
    moved = Path(settings.output_dir).rename(text.parent / "moved")
    monkeypatch.setattr(choose_settings, "model_shape", lambda budget, layers, heads: (1, 32))
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


@pytest.mark.commands
def test_two_processes_take_one_choice(text: Path, project_root: Path) -> None:
    """Through the launcher, as typed: each alone would choose for its own measurement."""
    output = text.parent / "run"
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--cpu", "--num_processes", "2", "--main_process_port", "0", project_root / "scripts" / "train.py"]
    words = ["--train_file", text, "--minutes", "0.6", "--output_dir", output]
    run = subprocess.run(
        [str(word) for word in (*launcher, *words)], capture_output=True, text=True, timeout=300, cwd=text.parent
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("--minutes 0.6 chooses") == 1
    recorded = json.loads((output / "settings.json").read_text(encoding="utf-8"))
    assert recorded["vocabulary"] == str(output / "vocabulary")
    assert (output / "model" / "model.safetensors").is_file()


def test_a_run_that_cannot_begin_leaves_nothing(text: Path) -> None:
    text.write_text("a b", encoding="utf-8")
    settings = bounded(text, minutes=0.1)
    with pytest.raises(ValueError, match="text is too short"):
        train(settings)
    assert not Path(settings.output_dir).exists()


def test_a_step_is_split_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = parse_settings(["--vocabulary", "bytes", "--hidden_size", "32", "--per_device_train_batch_size", "64"])
    device = torch.device("cpu")
    assert fit_to_memory(chosen, CHOSEN_BY_MINUTES, device) == chosen
    needed = choose_settings.estimate_memory(chosen.model_config(), chosen, device, "no")
    monkeypatch.setattr(choose_settings.psutil, "virtual_memory", lambda: type("Free", (), {"available": needed}))
    split = fit_to_memory(chosen, CHOSEN_BY_MINUTES, device)
    assert split.per_device_train_batch_size < 64
    assert split.per_device_train_batch_size * split.gradient_accumulation_steps == 64
    assert fit_to_memory(chosen, ["gradient_accumulation_steps"], device) == chosen, "a batch that is given stays"


@pytest.mark.parametrize(
    ("words", "batch"),
    [
        ([], (17, 1)),
        (["--gradient_accumulation_steps", "3"], (6, 3)),
        (["--per_device_train_batch_size", "4"], (4, 5)),
    ],
)
def test_a_step_keeps_its_windows_where_a_part_of_the_batch_is_given(words: list[str], batch: tuple[int, int]) -> None:
    assert micro_batch(parse_settings(["--minutes", "1", *words]), 16.2) == batch

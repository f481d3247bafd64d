"""Proves that minutes decide the steps, that the rate ends with them, and that measuring a step changes no run."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from hf_gpt_scratch.runtime.stopwatch import Stopwatch
from hf_gpt_scratch.training import build
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.minutes.time_budget import leaving_seconds
from hf_gpt_scratch.training.progress import Progress
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.speed import Speed
from tests.training.histories import rows, step_losses


BOUNDED = {"max_steps": -1, "warmup_steps": None, "eval_steps": None, "eval_iter": 1, "sample_tokens": 0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a start take five seconds, a step one, and what comes after the last step next to nothing."""

    def lap(self: Stopwatch) -> float:
        self.laps = getattr(self, "laps", 0) + 1
        return 5.0 if self.laps == 1 else 1.0

    monkeypatch.setattr(Stopwatch, "lap", lap)
    monkeypatch.setattr(Progress, "note_scoring", lambda self, seconds: None)
    monkeypatch.setattr(Progress, "note_saving", lambda self, seconds: None)
    monkeypatch.setattr(build, "measure_speed", lambda *arguments: Speed(1e-6))


def resumed(settings: TrainingSettings, **changes: object) -> TrainingSettings:
    return TrainingSettings(**{**settings.to_dict(), **BOUNDED, "resume": True, **changes})


def progress_of(settings: TrainingSettings, step: int) -> dict:
    path = Path(settings.output_dir, "checkpoints", f"step-{step:08d}", "state.json")
    return json.loads(path.read_text(encoding="utf-8"))["progress"]


@pytest.mark.usefixtures("clock")
def test_steps_fill_the_minutes_and_the_rate_ends_with_them(tiny_settings: Callable[..., TrainingSettings]) -> None:
    """60 seconds less 5 for the start and 0.3 times as much for the end leave 53 steps of one second."""
    settings = tiny_settings(**BOUNDED, minutes=1.0)
    train(settings)
    steps = rows(settings.output_dir, "step")
    assert len(steps) == 53
    rates = [row["learning_rate"] for row in steps]
    assert rates[-1] == pytest.approx(settings.min_learning_rate, rel=0.03)
    assert max(rates) > 0.9 * settings.learning_rate
    assert rows(settings.output_dir, "evaluation")[-1]["global_step"] == 53
    progress = progress_of(settings, 53)
    assert (progress["seconds"], progress["timed_steps"], progress["planned_steps"]) == (58.0, 53, 53)
    assert "53 of 53 steps" in Path(settings.output_dir, "model", "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("clock")
def test_resumed_run_spends_what_is_left(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    """A second start costs its five seconds too."""
    settings = tiny_settings(**BOUNDED, minutes=0.5, save_steps=10, save_total_limit=9)
    train(settings)
    for step in (20, 23):
        shutil.rmtree(Path(settings.output_dir, "checkpoints", f"step-{step:08d}"))
    capsys.readouterr()
    train(resumed(settings))
    assert "the run ends about 0.5 minutes after its start, of which 0.3 are over" in capsys.readouterr().out
    assert len(rows(settings.output_dir, "step")) == 18
    assert progress_of(settings, 18)["seconds"] == 28.0
    # At its end the same minutes are over; with more of them it becomes longer, at the lowest rate.
    train(resumed(settings))
    assert len(rows(settings.output_dir, "step")) == 18
    train(resumed(settings, minutes=1.0))
    steps = rows(settings.output_dir, "step")
    assert len(steps) == 18 + 60 - 28 - 5 - 2
    assert {row["learning_rate"] for row in steps[18:]} == {settings.min_learning_rate}
    with pytest.raises(ValueError, match="can only become longer"):
        train(resumed(settings, minutes=None, num_train_epochs=1))


@pytest.mark.usefixtures("clock")
def test_minutes_bound_a_run_that_had_none(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(max_steps=6, save_steps=4, sample_tokens=0)
    train(settings)
    train(resumed(settings, minutes=0.5, warmup_steps=2, eval_steps=3, eval_iter=None))
    assert len(rows(settings.output_dir, "step")) == 6 + 30 - 5 - 2


def test_time_that_is_over_before_the_first_step(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(**BOUNDED, minutes=1.0)
    with pytest.raises(ValueError, match=r"^--minutes 1 end before the first step, the start took \d+ s: give more$"):
        train(settings, begun=time.perf_counter() - 60)
    assert not Path(settings.output_dir).exists()


def test_measuring_changes_nothing(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dropout draws the same numbers, and steps taken in the backward pass are not taken while it is measured."""
    changes = {"dropout": 0.1, "optimizer_in_backward": True, "max_grad_norm": 0.0}
    measured = tiny_settings(**changes)
    train(measured)
    monkeypatch.setattr(build, "measure_speed", lambda *arguments: Speed(1.0))
    plain = tiny_settings(**changes, output_dir=str(tmp_path / "plain"))
    train(plain)
    assert step_losses(Path(measured.output_dir)) == step_losses(Path(plain.output_dir))


def test_length_is_said_before_the_first_step(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Everything counts.

    6 steps of 4 windows, 40 + 5 seconds each: 270. 3 evaluations of 5 windows of both texts, 4 windows in 20 seconds:
    150. A sample at the end, 7 seconds, and checkpoints after 4 and 6 steps, 4 seconds each; the end takes 0.3 of 20.
    """
    speed = Speed(micro_batch=40.0, update=5.0, scoring=20.0, sample=7.0, checkpoint=4.0)
    monkeypatch.setattr(build, "measure_speed", lambda *arguments: speed)
    monkeypatch.setattr(Run, "start_seconds", 20.0)
    train(tiny_settings(save_steps=4))
    line = "from here to its result the run takes about 0:07:21; --minutes would bound it\n"
    out = capsys.readouterr().out
    assert line in out
    assert out.index(line) < out.index("step 0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "5", "--max_steps", "9"], "--minutes 5 and --max_steps 9 both decide the steps: give one"),
        (["--minutes", "5", "--num_train_epochs", "9"], "--minutes and --num_train_epochs both decide the steps"),
        (["--minutes", "-1"], "--minutes must be at least 0, got -1"),
        (["--minutes", "nan"], "--minutes must be at least 0, got nan"),
    ],
)
def test_contradictions(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(words)


def test_minutes_replace_the_steps_of_a_recipe() -> None:
    settings = parse_settings(["--recipe", "char-small", "--minutes", "5"])
    assert (settings.minutes, settings.max_steps, settings.warmup_steps) == (5.0, -1, None)


def test_reading_a_long_text_does_not_lengthen_the_end() -> None:
    assert leaving_seconds(10.0) == 3.0
    assert leaving_seconds(300.0) == 9.0


@pytest.mark.parametrize("text", ["the text", "a text smaller than a batch"])
def test_dry_run_says_how_many_steps_fit(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Two minutes in steps of one second, of which evaluations take 11 %; the start takes next to nothing."""
    monkeypatch.setattr(build, "measure_speed", lambda *arguments: Speed(1.0))
    batch = 4 if text == "the text" else 99
    lines = dry_run(tiny_settings(**BOUNDED, minutes=2.0, per_device_train_batch_size=batch))
    assert "time 2 minutes; the steps are about as many as they allow" in lines
    (steps,) = (int(found) for line in lines for found in re.findall(r"steps an epoch, (\d+) steps", line))
    assert 90 <= steps <= 106  # 106 = 120 * 0.89; the test's own start counts
    assert any("99 windows x 1 micro-batches are cut to 34 x 1" in line for line in lines) == (batch == 99)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Mock(available=1e6))
    lines = dry_run(tiny_settings(**BOUNDED, minutes=2.0, peak_flops=1e9, per_device_train_batch_size=batch))
    assert "time 2 minutes; the steps are the most that they allow, at a peak of 1 GFLOP/s" in lines


@pytest.mark.usefixtures("clock")
def test_changed_minutes_are_kept_when_a_run_is_resumed_in_its_middle(
    tiny_settings: Callable[..., TrainingSettings],
) -> None:
    """Fewer minutes: the run ends earlier, and settings.json says why."""
    settings = tiny_settings(**BOUNDED, minutes=1.0, save_steps=10, save_total_limit=9)
    train(settings)
    for path in Path(settings.output_dir, "checkpoints").glob("step-000000[2-5]*"):
        shutil.rmtree(path)
    train(resumed(settings, minutes=0.5))
    assert len(rows(settings.output_dir, "step")) == 10 + 30 - 5 - 10 - 5 - 2
    written = json.loads(Path(settings.output_dir, "settings.json").read_text(encoding="utf-8"))
    assert written["minutes"] == 0.5
    assert progress_of(settings, 18)["schedule_steps"] is None  # it did not become longer


def test_a_checkpoint_is_reserved_at_the_end(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 30 steps of a second, those are left out in which the last checkpoint is written, once one was timed."""
    monkeypatch.setattr(Progress, "note_scoring", lambda self, seconds: None)
    monkeypatch.setattr(build, "measure_speed", lambda *arguments: Speed(1e-6))
    monkeypatch.setattr(Stopwatch, "lap", lambda self: 1.0)
    note_saving = Progress.note_saving
    for number, (seconds, steps) in enumerate(((0.0, 28), (8.0, 20))):
        monkeypatch.setattr(Progress, "note_saving", lambda self, _, seconds=seconds: note_saving(self, seconds))
        settings = tiny_settings(**BOUNDED, minutes=0.5, save_steps=10)
        settings.output_dir += str(number)
        train(settings)
        assert len(rows(settings.output_dir, "step")) == steps

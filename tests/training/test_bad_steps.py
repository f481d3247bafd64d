"""Proves that a step without a finite loss and gradient, or with a spike, never reaches the weights.

The NaNs are real: a weight, a loss or a learning rate is made absurd in a run of the loop itself.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training.bad_steps import MAX_SKIPPED, MIN_STEPS, Diverged, find_fault
from hf_gpt_scratch.training.checkpoints.manifest import find_corruption
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, without_speed


CALM = [[2.0 + 0.1 * (-1) ** step, 1.0 + 0.1 * (-1) ** step] for step in range(MIN_STEPS)]


@pytest.mark.parametrize(
    ("loss", "grad_norm", "recent", "threshold", "fault"),
    [
        (2.0, 1.0, CALM, 0.0, None),
        (math.nan, 1.0, [], 0.0, "not finite"),
        (math.inf, 1.0, [], 0.0, "not finite"),
        (2.0, math.nan, [], 0.0, "not finite"),
        (2.0, math.inf, CALM, 6.0, "not finite"),
        (99.0, 1.0, CALM, 0.0, None),
        (99.0, 1.0, CALM[1:], 6.0, None),
        (99.0, 1.0, CALM, 6.0, "loss"),
        (2.0, 99.0, CALM, 6.0, "gradient norm"),
        (2.5, 1.5, CALM, 6.0, None),  # 5 standard deviations
        (0.1, 0.1, CALM, 6.0, None),  # far below is welcome
    ],
)
def test_which_steps_are_bad(
    loss: float, grad_norm: float, recent: list[list[float]], threshold: float, fault: str | None
) -> None:
    found = find_fault(loss, grad_norm, recent, threshold)
    assert found is None if fault is None else fault in found


def step_rows(settings: TrainingSettings) -> list[dict]:
    return [without_speed(row) for row in rows(settings.output_dir, "step")]


def checkpoint(settings: TrainingSettings, step: int) -> Path:
    return Path(settings.output_dir, "checkpoints", f"step-{step:08d}")


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int], float], None]:
    """Multiply the loss of some training steps, counted from 1 by what the loop calls them, and so their gradient."""

    def apply(steps: set[int], factor: float) -> None:
        forward = GPTScratchForCausalLM.forward
        optimizer_step = loop.optimizer_step
        under_way = {"step": 0}

        def counted(run: loop.Run, *args: object) -> tuple:
            under_way["step"] = run.progress.global_step + 1
            return optimizer_step(run, *args)

        def poisoned(self: GPTScratchForCausalLM, *args: object, **kwargs: object) -> object:
            output = forward(self, *args, **kwargs)
            if self.training and under_way["step"] in steps:
                output.loss = output.loss * factor
            return output

        monkeypatch.setattr(loop, "optimizer_step", counted)
        monkeypatch.setattr(GPTScratchForCausalLM, "forward", poisoned)

    return apply


def test_run_stops_with_one_line_and_the_checkpoint_before_is_intact(
    tiny_settings: Callable[..., TrainingSettings], poison: Callable
) -> None:
    settings = tiny_settings(save_steps=2, max_steps=9)
    poison({6}, math.nan)
    with pytest.raises(Diverged) as caught:
        train(settings)
    line = str(caught.value)
    assert line.startswith("stopped at step 6, which was not applied: loss nan, gradient norm nan (not finite); ")
    assert f"resume from {checkpoint(settings, 4)} with --resume --on_bad_step skip" in line
    assert "--learning_rate" in line
    assert "\n" not in line
    assert caught.value.exit_code == 1
    assert find_corruption(checkpoint(settings, 4)) is None
    assert len(step_rows(settings)) == 5

    # The way out that the line names.
    train(TrainingSettings(**{**settings.to_dict(), "resume": True, "on_bad_step": "skip"}))
    assert [row["global_step"] for row in step_rows(settings) if "skipped" in row] == [6]
    assert len(step_rows(settings)) == 9


def test_way_out_before_the_first_checkpoint_is_one_that_is_taken(
    tiny_settings: Callable[..., TrainingSettings], poison: Callable, tmp_path: Path
) -> None:
    settings = tiny_settings()
    poison({2}, math.nan)
    with pytest.raises(Diverged, match="no checkpoint yet: start again in another --output_dir with a lower .*skip$"):
        train(settings)
    skipping = {**settings.to_dict(), "on_bad_step": "skip"}
    with pytest.raises(FileExistsError, match="holds another run"):
        train(TrainingSettings(**skipping))
    assert train(TrainingSettings(**skipping | {"output_dir": str(tmp_path / "another")})).skipped_steps == 1


def test_skipped_step_changes_nothing_and_is_counted(
    tiny_settings: Callable[..., TrainingSettings], poison: Callable
) -> None:
    """No weight, no moment of the optimizer; the run goes on, and resumed in between it goes on to the same bits."""
    settings = tiny_settings(save_steps=1, save_total_limit=99, max_steps=8, on_bad_step="skip", dropout=0.1)
    poison({5, 6}, math.nan)
    result = train(settings)
    assert result.skipped_steps == 2
    steps = step_rows(settings)
    assert [row.get("skipped", False) for row in steps] == [False] * 4 + [True] * 2 + [False] * 2
    assert steps[4]["loss"] is None
    assert "NaN" not in (Path(settings.output_dir) / "history.jsonl").read_text(encoding="utf-8")
    assert all(math.isfinite(row["loss"]) for row in steps[6:])
    # Nothing is saved where steps are skipped.
    saved = sorted(path.name for path in checkpoint(settings, 1).parent.iterdir())
    assert saved == [f"step-{step:08d}" for step in (1, 2, 3, 4, 7, 8)]
    expected = {name: (checkpoint(settings, 8) / name).read_bytes() for name in WHOLE_STATE}
    for step in (7, 8):
        for file in checkpoint(settings, step).iterdir():
            file.unlink()
        checkpoint(settings, step).rmdir()
    train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    assert step_rows(settings) == steps
    assert {name: (checkpoint(settings, 8) / name).read_bytes() for name in WHOLE_STATE} == expected


WHOLE_STATE = ("model.safetensors", "optimizer.safetensors", "rng_0.safetensors")


def test_applying_the_same_step_would_have_ruined_the_weights(
    tiny_settings: Callable[..., TrainingSettings], poison: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the judgement one NaN is in every weight."""
    settings = tiny_settings(max_steps=5)
    poison({4}, math.nan)
    monkeypatch.setattr(loop, "may_be_applied", lambda *args: True)
    train(settings)
    assert [row["loss"] for row in step_rows(settings)][4] is None


def test_broken_weights_are_not_skipped_over_for_ever(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An absurd learning rate makes every loss after it NaN; the run ends, and no later checkpoint replaces a good."""
    settings = tiny_settings(max_steps=30, on_bad_step="skip", save_steps=1, save_total_limit=3, warmup_steps=0)
    monkeypatch.setattr(loop, "learning_rate_at", lambda step, *args: 1e38 if step == 3 else 1e-3)
    with pytest.raises(
        Diverged, match=rf"so were {MAX_SKIPPED} steps before it: start again in another --output_dir with a lower"
    ):
        train(settings)
    steps = step_rows(settings)
    assert [row.get("skipped", False) for row in steps] == [False] * 4 + [True] * MAX_SKIPPED
    assert find_corruption(checkpoint(settings, 3)) is None


def test_spike_is_skipped_and_what_it_is_compared_with_survives_a_resume(
    tiny_settings: Callable[..., TrainingSettings], poison: Callable
) -> None:
    changes = {"on_bad_step": "skip", "spike_threshold": 8.0, "save_steps": MIN_STEPS + 2, "eval_steps": 99}
    settings = tiny_settings(max_steps=MIN_STEPS + 6, save_total_limit=9, **changes)
    poison({MIN_STEPS + 4}, 50.0)
    result = train(settings)
    assert result.skipped_steps == 1
    steps = step_rows(settings)
    assert [row["global_step"] for row in steps if "skipped" in row] == [MIN_STEPS + 4]
    assert steps[MIN_STEPS + 3]["loss"] > 100
    newest = checkpoint(settings, MIN_STEPS + 6)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    again = train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    assert again.skipped_steps == 1
    assert step_rows(settings) == steps
    assert torch.isfinite(torch.tensor([row["loss"] for row in steps])).all()

"""Proves what a run keeps and restores: the best checkpoint, the order of an epoch, and no field set from outside."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows


def test_best_checkpoint_is_kept_and_becomes_the_result(
    tiny_settings: Callable[..., TrainingSettings], capsys: pytest.CaptureFixture
) -> None:
    """A rate far too high makes the loss rise, so that the best weights are not the last."""
    settings = tiny_settings(
        max_steps=12, eval_steps=2, learning_rate=0.5, lr_scheduler_type="constant", load_best_model_at_end=True
    )
    result = train(settings)
    losses = {row["global_step"]: row["validation_loss"] for row in rows(settings.output_dir, "evaluation")[1:7]}
    best = min(losses, key=losses.get)
    assert best < 12
    assert result.validation_loss == losses[best]
    names = sorted(path.name for path in Path(settings.output_dir, "checkpoints").iterdir())
    assert f"step-{best:08d}" in names
    assert names[-1] == "step-00000012"
    assert len(names) <= 3
    # Where it is damaged, the last weights are taken and it is said.
    Path(settings.output_dir, "checkpoints", f"step-{best:08d}", "state.json").unlink()
    result = train(TrainingSettings(**{**settings.to_dict(), "resume": True}))
    assert result.validation_loss != losses[best]
    assert "the best checkpoint, cannot be used (state.json is missing)" in capsys.readouterr().out


def test_no_field_of_a_run_is_set_from_outside(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    finish = loop.finish
    monkeypatch.setattr(loop, "finish", lambda run: (runs.append(run), finish(run))[1])
    train(tiny_settings(max_steps=2, warmup_steps=0))
    (run,) = runs
    assert run.progress.global_step == 2
    for field in fields(Run):
        with pytest.raises(FrozenInstanceError):
            setattr(run, field.name, None)

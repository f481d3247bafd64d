"""Proves that a batch is no larger than the text, how much of it evaluations score, and that a prompt fits."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.plan import (
    check_prompt,
    cut_line,
    evaluation_batch_size,
    evaluations_line,
    fit_to_text,
    plan_evaluations,
    with_fitting_batch,
)
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, step_losses


def sizes(settings: TrainingSettings) -> tuple[int, int]:
    return settings.per_device_train_batch_size, settings.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("windows", "micro_batches", "processes", "expected"),
    [
        (5000, 1, 1, (47, 1)),
        (1_000_000, 8, 1, (47, 1)),
        (8, 100, 1, (8, 6)),
        (5000, 1, 2, (24, 1)),
        (4, 100, 3, (4, 4)),
        (47, 1, 1, (47, 1)),
        (40, 2, 1, (24, 2)),
        (2, 20, 1, (2, 20)),  # 40 windows, the last step has 7
    ],
)
def test_batch_is_cut_to_the_windows_that_there_are(
    windows: int, micro_batches: int, processes: int, expected: tuple[int, int]
) -> None:
    asked = TrainingSettings(per_device_train_batch_size=windows, gradient_accumulation_steps=micro_batches)
    cut = with_fitting_batch(asked, 47, processes)
    assert sizes(cut) == expected
    assert (cut_line(asked, cut, 47) is None) == (expected == (windows, micro_batches))
    _, steps_per_epoch, num_steps = fit_to_text(asked, 47, processes)
    assert num_steps == 10 * steps_per_epoch


@pytest.mark.parametrize(
    ("num_steps", "num_windows", "batch", "expected"),
    [
        (200, 5, 2, (20, 5, 5)),  # the bundled story: all of it, always
        (6, 1000, 4, (20, 8, 8)),  # however short the run
        (10_560, 235, 2, (212, 19, 235)),  # ten epochs of 1 MB: all of it at the end
        (10_560, 23_500, 2, (212, 19, 812)),  # one epoch of 10 MB at a tenth of the text
        (10_560, 235_000, 32, (212, 311, 12_996)),
    ],
)
def test_evaluations_take_a_small_part_of_any_run(
    num_steps: int, num_windows: int, batch: int, expected: tuple[int, int, int]
) -> None:
    """Counted in tokens: at most 11 % of what is trained on, at the cost that a scored token has."""
    settings = TrainingSettings(per_device_train_batch_size=batch).with_num_steps(num_steps)
    plan = plan_evaluations(settings, num_steps, num_windows, 1)
    assert (settings.eval_steps, plan.each, plan.at_end) == expected
    num_evaluations = 1 + num_steps // settings.eval_steps
    assert num_evaluations <= 51
    is_last_whole = plan.each == plan.at_end and num_steps % settings.eval_steps == 0
    assert plan.num_scored == 2 * (plan.each * num_evaluations + (0 if is_last_whole else plan.at_end))
    if plan.each > 8:
        assert 0.65 * plan.num_scored <= 0.11 * num_steps * batch
    assert (evaluations_line(plan, settings) is None) == (plan.each == num_windows)


def test_evaluations_and_checkpoints_of_small_steps_are_further_apart() -> None:
    """An evaluation after 128 windows, a checkpoint after 65,536 tokens. The bundled story's stay as they are.

    With 1,200 windows trained on in all, evaluations are closer.
    """
    for batch, own, bundled in ((2, (64, 256), (20, 100)), (4, (20, 128), (20, 100)), (32, (20, 100), (20, 100))):
        for text, expected in (({"train_file": ["x"]}, own), ({"train_data": "x"}, own), ({}, bundled)):
            settings = TrainingSettings(**text, per_device_train_batch_size=batch).with_num_steps(300)
            assert (settings.eval_steps, settings.save_steps) == expected
    asked = TrainingSettings(train_file=["x"], eval_steps=3, save_steps=0).with_num_steps(300)
    assert (asked.eval_steps, asked.save_steps) == (3, 0)
    assert TrainingSettings(train_file=["x"]).with_num_steps(10_560).eval_steps == 212


@pytest.mark.parametrize(
    ("num_steps", "batch", "expected"),
    [
        (1280, 2, (64, 8, 21)),
        (900, 2, (45, 5, 21)),
        (640, 2, (32, 4, 21)),
        (577, 2, (32, 4, 20)),
        (559, 2, (32, 4, 19)),
        (512, 2, (32, 4, 17)),
        (511, 2, (64, 8, 9)),  # its start and end take more, and leave less
        (330, 2, (64, 8, 7)),
        (400, 4, (20, 5, 21)),
        (400, 32, (20, 28, 21)),
    ],
)
def test_short_run_on_a_text_of_ones_own_has_20_points_in_the_same_time(
    num_steps: int, batch: int, expected: tuple[int, int, int]
) -> None:
    """As many windows are scored for those that are trained on as in a run of 1,280 steps, never fewer than four."""
    settings = TrainingSettings(train_file=["x"], per_device_train_batch_size=batch).with_num_steps(num_steps)
    plan = plan_evaluations(settings, num_steps, 1000, 1)
    points = 1 + num_steps // settings.eval_steps + (num_steps % settings.eval_steps > 0)
    assert (settings.eval_steps, plan.each, points) == expected
    assert plan.each <= settings.eval_steps * batch / 16


def test_evaluations_that_are_asked_for_score_eight_windows() -> None:
    settings = TrainingSettings(train_file=["x"], eval_steps=10).with_num_steps(400)
    assert plan_evaluations(settings, 400, 1000, 1).each == 8


def test_asked_evaluations_are_made() -> None:
    for eval_iter, at_end, num_scored in ((0, 23_500, 2 * 23_500 * 49), (3, 81, 2 * (6 * 49 + 81))):
        settings = TrainingSettings(eval_iter=eval_iter).with_num_steps(1056)
        plan = plan_evaluations(settings, 1056, 23_500, 1)
        assert (plan.windows(eval_iter), plan.at_end, plan.num_scored) == (23_500, at_end, num_scored)
    line = "evaluations score 6 of the 23,500 windows of the validation text, every 22 steps, and 81 at the end"
    assert evaluations_line(plan, settings) == line


def test_batch_of_an_evaluation_is_cut_too() -> None:
    assert evaluation_batch_size(TrainingSettings(per_device_train_batch_size=50), 5, 1) == 5
    assert evaluation_batch_size(TrainingSettings(per_device_train_batch_size=50), 5, 2) == 6
    assert evaluation_batch_size(TrainingSettings(), 5, 1) == 2


def test_text_without_a_full_step_is_refused() -> None:
    settings = TrainingSettings(per_device_train_batch_size=99, drop_last=True)
    with pytest.raises(ValueError, match="has 47 windows, but with --drop_last one step needs 99"):
        fit_to_text(settings, 47, 1)


def test_huge_batch_takes_the_steps_of_a_fitting_one_and_says_so(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A million windows never came to an end: the text has 34."""
    common = {"max_steps": 3, "dropout": 0.1, "sample_tokens": 0}
    fitting = tiny_settings(**common, per_device_train_batch_size=34, output_dir=str(tmp_path / "fitting"))
    train(fitting)
    assert "warning" not in capsys.readouterr().out
    huge = tiny_settings(**common, per_device_train_batch_size=1_000_000, output_dir=str(tmp_path / "huge"))
    line = "warning: the text has 34 windows, fewer than a step asks for: 1,000,000 windows x 1 micro-batches are cut"
    assert any(line in said for said in dry_run(huge))
    train(huge)
    assert line in capsys.readouterr().out
    assert step_losses(huge.output_dir) == step_losses(fitting.output_dir)
    assert rows(huge.output_dir, "run")[0]["settings"]["per_device_train_batch_size"] == 34
    again = train(TrainingSettings(**{**huge.to_dict(), "resume": True}))
    assert again.validation_loss == rows(fitting.output_dir, "end")[0]["validation_loss"]


def test_micro_batches_that_would_be_empty_are_cut(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    common = {"max_steps": 3, "sample_tokens": 0, "per_device_train_batch_size": 17}
    two = tiny_settings(**common, gradient_accumulation_steps=2, output_dir=str(tmp_path / "two"))
    many = tiny_settings(**common, gradient_accumulation_steps=500, output_dir=str(tmp_path / "many"))
    for settings in (two, many):
        train(settings)
    assert step_losses(many.output_dir) == step_losses(two.output_dir)
    checkpoints = [Path(settings.output_dir) / "checkpoints" / "step-00000003" for settings in (two, many)]
    weights = [(path / "model.safetensors").read_bytes() for path in checkpoints]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("prompt", ["", "word " * 200])
def test_prompt_that_does_not_fit_is_refused_unless_there_is_no_sample(prompt: str) -> None:
    with pytest.raises(ValueError, match="--sample_prompt has"):
        check_prompt(TrainingSettings(sample_prompt=prompt), load_encoding())
    check_prompt(TrainingSettings(sample_prompt=prompt, sample_tokens=0), load_encoding())

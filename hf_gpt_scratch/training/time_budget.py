"""Fit a run into a number of minutes: as many steps as they allow, estimated before the first and after each step."""

import math
from dataclasses import replace
from datetime import timedelta

from hf_gpt_scratch.training.plan import COST_OF_SCORING, EVALUATIONS_SHARE, LAST_SHARE, plan_evaluations
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.stopping import largest


# Writing the result and leaving take this part of the time that the start took, in which the libraries were loaded.
ENDING_SHARE = 0.3


def fit_to_minutes(run: Run, asked: TrainingSettings) -> Run:
    """Expect of a fresh run the steps that its minutes allow, by the time of a micro-batch. Collective.

    Args:
        run: built for any number of steps.
        asked: its settings before they were fitted to a number of steps.

    Raises:
        ValueError: the start has taken all of the time.
    """
    minutes = run.settings.minutes or 0.0
    # The slowest process decides for all.
    start, a_step = largest(run.accelerator, [run.stopwatch.read(), step_seconds(run, with_evaluations=True)])
    left = 60 * minutes - (1 + ENDING_SHARE) * start
    if left <= 0:
        raise ValueError(f"--minutes {minutes:g} end before the first step, the start took {start:.0f} s: give more")
    return expect_steps(run, asked, max(1, int(left / a_step)))


def expect_steps(run: Run, asked: TrainingSettings, num_steps: int) -> Run:
    """Return the run with the warm-up and the evaluations of that many steps; the minutes may still change them."""
    settings = replace(run.settings, warmup_steps=asked.warmup_steps, eval_steps=asked.eval_steps)
    settings = settings.with_num_steps(num_steps)
    plan = plan_evaluations(settings, num_steps, run.validation_sampler.num_windows, run.accelerator.num_processes)
    return replace(run, settings=settings, evaluation_plan=plan, expected_steps=num_steps)


def step_seconds(run: Run, with_evaluations: bool = False) -> float:
    """Estimate the seconds of an optimizer step by those of a micro-batch; the update of the weights is left out."""
    seconds = run.settings.gradient_accumulation_steps * run.micro_batch_seconds
    return seconds / (1 - EVALUATIONS_SHARE - LAST_SHARE) if with_evaluations else seconds


def window_seconds(run: Run) -> float:
    """Estimate the seconds in which this process scores a window, by those of a micro-batch."""
    return COST_OF_SCORING * run.micro_batch_seconds / run.settings.per_device_train_batch_size


def length_line(run: Run) -> str | None:
    """Describe how long the rest of a run takes, without samples, checkpoints and the result; None at its end."""
    progress, minutes = run.progress, run.settings.minutes
    steps_left = run.num_steps - progress.global_step
    if steps_left <= 0:
        return None
    if minutes is not None:
        spent = f", of which {progress.seconds / 60:.1f} are over" if progress.seconds else ""
        return f"the run ends about {minutes:g} minutes after its start{spent}"
    # As if the evaluations were spread evenly over the run.
    scored = run.evaluation_plan.num_scored / run.accelerator.num_processes * steps_left / run.num_steps
    seconds = steps_left * step_seconds(run) + scored * window_seconds(run)
    time = timedelta(seconds=math.ceil(seconds))
    return f"training and evaluations take about {time}; --minutes would bound the run"


def note_start(run: Run) -> None:
    """Count the time of a start, and plan the steps. Collective: call on every process before the first step."""
    if run.settings.minutes is not None:
        run.progress.count_start(run.stopwatch.lap())
        plan_steps(run)


def note_step(run: Run) -> None:
    """Count the time of a step, and plan the steps again. Collective: call on every process after each step."""
    if run.settings.minutes is not None:
        run.progress.count_step(run.stopwatch.lap())
        plan_steps(run)


def plan_steps(run: Run) -> None:
    """Plan as many more steps as the time left allows, by the mean time of those before, evaluations included."""
    progress = run.progress
    left = 60 * (run.settings.minutes or 0.0) - progress.seconds - ending_seconds(run)
    if left <= 0:
        more = 0
    elif progress.timed_steps:
        more = int(left * progress.timed_steps / progress.step_seconds)
    else:
        more = max(1, int(left / step_seconds(run, with_evaluations=True)))
    # All processes take as many steps as the slowest has time for.
    more = -int(largest(run.accelerator, [-float(more)])[0])
    progress.plan_steps(run.expected_steps, progress.global_step + more)


def ending_seconds(run: Run) -> float:
    """Estimate the seconds from the last step to the end: evaluations, checkpoint, result and leaving."""
    progress, plan, settings = run.progress, run.evaluation_plan, run.settings
    since_evaluation = (progress.global_step - settings.eval_first_step) % (settings.eval_steps or run.num_steps)
    # Training windows are scored too. The evaluation before the first step is no measure: it warms up.
    a_window = progress.scoring_seconds or 2 * window_seconds(run) / run.accelerator.num_processes
    scored = plan.at_end + (plan.each if progress.global_step and not since_evaluation else 0)
    return ENDING_SHARE * progress.start_seconds + progress.saving_seconds + scored * a_window

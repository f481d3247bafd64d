"""Fit a run into its minutes: as many steps as they allow, estimated before the first and after each step.

The same estimates tell how long a run without minutes takes.
"""

import math
from dataclasses import replace
from datetime import timedelta

from hf_gpt_scratch.training.plan import EVALUATIONS_SHARE, LAST_SHARE, plan_evaluations
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.stopping import largest


# Writing the result and leaving take this part of the time that the start took, in which the libraries were loaded; a
# start is longer than this many seconds where a long text is read.
ENDING_SHARE, LIBRARIES_SECONDS = 0.3, 30.0


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
    start, a_step = largest(run.accelerator, [run.stopwatch.read(), step_seconds(run, with_others=True)])
    left = 60 * minutes - start - leaving_seconds(start)
    if left <= 0:
        raise ValueError(f"--minutes {minutes:g} end before the first step, the start took {start:.0f} s: give more")
    return expect_steps(run, asked, max(1, int(left / a_step)))


def expect_steps(run: Run, asked: TrainingSettings, num_steps: int) -> Run:
    """Return the run with the warm-up and the evaluations of that many steps; the minutes may still change them."""
    settings = replace(run.settings, warmup_steps=asked.warmup_steps, eval_steps=asked.eval_steps)
    settings = settings.with_num_steps(num_steps)
    plan = plan_evaluations(settings, num_steps, run.samplers.validation.num_windows, run.accelerator.num_processes)
    return replace(run, settings=settings, evaluation_plan=plan, expected_steps=num_steps)


def step_seconds(run: Run, with_others: bool = False) -> float:
    """Estimate the seconds of an optimizer step, with its part of evaluations, samples and checkpoints if asked."""
    settings, speed = run.settings, run.speed
    seconds = settings.gradient_accumulation_steps * speed.micro_batch + speed.update
    if not with_others:
        return seconds
    others = speed.sample / len(run.samplers.train)
    others += speed.checkpoint / settings.save_steps if settings.save_steps else 0.0
    return seconds / (1 - EVALUATIONS_SHARE - LAST_SHARE) + others


def leaving_seconds(start: float) -> float:
    """Estimate the seconds in which the result is written and the process ends, by those of its start."""
    return ENDING_SHARE * min(start, LIBRARIES_SECONDS)


def window_seconds(run: Run) -> float:
    """Estimate the seconds in which this process scores a window."""
    return run.speed.scoring / run.settings.per_device_train_batch_size


def seconds_besides_steps(run: Run) -> float:
    """Estimate the seconds of the evaluations, samples and checkpoints still to come, and of the end."""
    settings, plan, done, num_steps = run.settings, run.evaluation_plan, run.progress.global_step, run.num_steps

    def left_of(interval: int) -> int:
        """Count the multiples of an interval that are still to come, and the last step."""
        return -(-num_steps // interval) - done // interval

    num_evaluated = 1 + done // (settings.eval_steps or num_steps) if done else 0
    scored = max(2 * plan.at_end, plan.num_scored - 2 * plan.each * num_evaluated)
    seconds = scored / run.accelerator.num_processes * window_seconds(run)
    seconds += left_of(len(run.samplers.train)) * run.speed.sample
    seconds += left_of(settings.save_steps or num_steps) * run.speed.checkpoint
    return seconds + leaving_seconds(run.start_seconds)


def seconds_to_result(run: Run) -> float:
    """Estimate the seconds from here to the result of a run, all counted."""
    return (run.num_steps - run.progress.global_step) * step_seconds(run) + seconds_besides_steps(run)


def length_line(run: Run) -> str | None:
    """Describe how long the rest of a run takes; None at its end."""
    progress, minutes = run.progress, run.settings.minutes
    if run.num_steps <= progress.global_step:
        return None
    if minutes is not None:
        spent = f", of which {progress.seconds / 60:.1f} are over" if progress.seconds else ""
        return f"the run ends about {minutes:g} minutes after its start{spent}"
    time = timedelta(seconds=math.ceil(seconds_to_result(run)))
    return f"from here to its result the run takes about {time}; --minutes would bound it"


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
        more = max(1, int(left / step_seconds(run, with_others=True)))
    # All processes take as many steps as the slowest has time for.
    more = -int(largest(run.accelerator, [-float(more)])[0])
    progress.plan_steps(run.expected_steps, progress.global_step + more)


def ending_seconds(run: Run) -> float:
    """Estimate the seconds from the last step to the end: evaluations, checkpoint, result and leaving."""
    progress, plan, settings = run.progress, run.evaluation_plan, run.settings
    since_evaluation = (progress.global_step - settings.eval_first_step) % (settings.eval_steps or run.num_steps)
    # Training windows are scored too. The evaluation before the first step is not a measure: it warms up.
    a_window = progress.scoring_seconds or 2 * window_seconds(run) / run.accelerator.num_processes
    scored = plan.at_end + (plan.each if progress.global_step and not since_evaluation else 0)
    return leaving_seconds(progress.start_seconds) + progress.saving_seconds + scored * a_window

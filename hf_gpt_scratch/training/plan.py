"""Plan a run by the length of its text: steps, evaluations, and a batch no larger than the text."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_gpt_scratch.data.tokenizer import text_to_token_ids
from hf_gpt_scratch.data.windows import StepSampler
from hf_gpt_scratch.evaluation import BATCH_TOKENS
from hf_gpt_scratch.training.settings import LEAST_WINDOWS_BETWEEN, WINDOWS_BETWEEN, TrainingSettings


if TYPE_CHECKING:
    from hf_gpt_scratch.data.tokenizer import AnyTokenizer


# The steps of a run that minutes bound, before they are estimated.
UNKNOWN_STEPS = 2**40
# Windows that are scored even where they take longer than their part of a short run; half of them where its
# evaluations are twice as close.
MIN_EVALUATED = 8
# By default, the parts of the training time that all evaluations of a run and its last one take.
EVALUATIONS_SHARE, LAST_SHARE = 0.06, 0.05
# A token scored is taken to cost this part of a token trained on. In batches of 4,096 tokens it costs about half of
# that, which leaves time for samples and checkpoints.
COST_OF_SCORING = 0.65


@dataclass(frozen=True)
class EvaluationPlan:
    """Windows of the validation text that an evaluation scores, and as many of the training text."""

    each: int  # during the run
    at_end: int
    num_windows: int  # of the whole validation text
    num_scored: int  # windows that all evaluations of the run score together, of both texts

    def windows(self, num_batches: int | None) -> int:
        """Return the windows of an evaluation that is asked for so many batches: see `TrainingSettings.eval_iter`."""
        return self.each if num_batches is None else self.num_windows


def plan_evaluations(
    settings: TrainingSettings, num_steps: int, num_windows: int, num_processes: int
) -> EvaluationPlan:
    """Choose how much of the validation text is scored, so that evaluations take a small part of the run.

    Args:
        settings: fitted to the text.
        num_steps: of the run.
        num_windows: of the validation text.
        num_processes: of the run.
    """
    steps_between = settings.eval_steps or num_steps
    windows_a_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * num_processes
    # Training and validation windows are scored.
    affordable = num_steps * windows_a_step / (2 * COST_OF_SCORING)
    num_evaluations = num_steps // steps_between + 1
    least, between = MIN_EVALUATED, steps_between * windows_a_step
    if (settings.train_file or settings.train_data) and LEAST_WINDOWS_BETWEEN <= between < WINDOWS_BETWEEN:
        least = MIN_EVALUATED * between // WINDOWS_BETWEEN
    sampled = max(least, int(EVALUATIONS_SHARE * affordable / num_evaluations))
    asked = (settings.eval_iter or num_windows) * evaluation_batch_size(settings, num_windows, num_processes)
    each = min(num_windows, sampled if settings.eval_iter is None else asked)
    at_end = num_windows if settings.eval_iter == 0 else min(num_windows, max(sampled, int(LAST_SHARE * affordable)))
    # The evaluation after the last step need not be repeated where it was of as many windows.
    again = 0 if each == at_end and num_steps % steps_between == 0 else at_end
    return EvaluationPlan(each, at_end, num_windows, 2 * (each * num_evaluations + again))


def fit_to_text(settings: TrainingSettings, num_windows: int, num_processes: int) -> tuple[TrainingSettings, int, int]:
    """Fit batch and warm-up to the text.

    Args:
        settings: of the run.
        num_windows: windows of the training text.
        num_processes: of the run.

    Returns:
        The settings, the steps of an epoch and those of the run.

    Raises:
        ValueError: an epoch has no step, or the run only warm-up.
    """
    settings = with_fitting_batch(settings, num_windows, num_processes)
    batch_size = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * num_processes
    steps_per_epoch = len(StepSampler(num_windows, batch_size, settings.drop_last))
    if steps_per_epoch == 0:
        raise ValueError(
            f"the training text has {num_windows} windows, but with --drop_last one step needs {batch_size}: give a "
            "longer text or a smaller batch"
        )
    num_steps = settings.max_steps if settings.max_steps > 0 else settings.num_train_epochs * steps_per_epoch
    num_steps = num_steps if settings.minutes is None else UNKNOWN_STEPS
    return settings.with_num_steps(num_steps), steps_per_epoch, num_steps


def with_fitting_batch(settings: TrainingSettings, num_windows: int, num_processes: int) -> TrainingSettings:
    """Cut a batch of more windows than there are, which would be filled up with empty ones; the step is the same."""
    windows, micro_batches = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    if windows * micro_batches * num_processes <= num_windows or settings.drop_last:
        return settings
    windows = min(windows, math.ceil(num_windows / num_processes))
    micro_batches = math.ceil(num_windows / (windows * num_processes))
    windows = math.ceil(num_windows / (micro_batches * num_processes))  # all alike: the last one is not half empty
    return replace(settings, per_device_train_batch_size=windows, gradient_accumulation_steps=micro_batches)


def cut_line(asked: TrainingSettings, cut: TrainingSettings, num_windows: int) -> str | None:
    """Describe how a batch was cut; return None if it was not."""
    sizes = [(s.per_device_train_batch_size, s.gradient_accumulation_steps) for s in (asked, cut)]
    if sizes[0] == sizes[1]:
        return None
    (windows, micro_batches), (fewer_windows, fewer_micro_batches) = sizes
    return (
        f"the text has {num_windows:,} windows, fewer than a step asks for: {windows:,} windows x {micro_batches:,} "
        f"micro-batches are cut to {fewer_windows:,} x {fewer_micro_batches:,}"
    )


def evaluation_batch_size(settings: TrainingSettings, num_windows: int, num_processes: int) -> int:
    """Return the windows of a batch of an evaluation over all processes, no more than would be filled."""
    windows = min(settings.per_device_train_batch_size, math.ceil(num_windows / num_processes))
    return windows * num_processes


def batches_together(settings: TrainingSettings) -> int:
    """Return how many batches of an evaluation pass through the model at once."""
    return max(1, BATCH_TOKENS // (settings.per_device_train_batch_size * settings.window_size))


def evaluations_line(plan: EvaluationPlan, settings: TrainingSettings) -> str | None:
    """Describe how much of the validation text is scored; return None if it is all of it."""
    if plan.each == plan.at_end == plan.num_windows:
        return None
    return (
        f"evaluations score {plan.each:,} of the {plan.num_windows:,} windows of the validation text, every "
        f"{settings.eval_steps:,} steps, and {plan.at_end:,} at the end"
    )


def check_prompt(settings: TrainingSettings, encoding: "AnyTokenizer") -> None:
    """Refuse a sample prompt that leaves no room in the context, or has nothing to continue.

    Raises:
        ValueError: it does.
    """
    num_tokens = text_to_token_ids(settings.sample_prompt, encoding).shape[1]
    if settings.sample_tokens and not 0 < num_tokens < settings.context:
        raise ValueError(
            f"--sample_prompt has {num_tokens} tokens, but must have at least 1 and fewer than the context of "
            f"{settings.context}: change it, or turn samples off with --sample_tokens 0"
        )

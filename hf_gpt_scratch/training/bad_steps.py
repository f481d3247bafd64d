"""Steps that must not change the weights: a loss or gradient that is not finite, or far above those before.

`optimizer_step` in `loop.py` asks `may_be_applied` to decide, and carries the decision out. An overflow of fp16, a
gradient that is not finite under a finite loss, it leaves to the gradient scaler without asking: the scaler skips the
step and lowers its scale. Such a step counts as applied, and later ones are not compared with it.
"""

import math
from pathlib import Path
from statistics import NormalDist

from hf_gpt_scratch.runtime.signals import Stopped
from hf_gpt_scratch.training.checkpoints.checkpoint import find_checkpoints
from hf_gpt_scratch.training.progress import Progress
from hf_gpt_scratch.training.settings import TrainingSettings


WINDOW = 128  # applied steps that a new one is compared with
MIN_STEPS = 32  # applied steps before there is a comparison
MAX_SKIPPED = 10  # skipped steps in a row; with one more the weights themselves count as broken


class Diverged(Stopped):
    """A run stopped, on all processes alike, by a step that must not be applied; the text says how to continue."""

    exit_code = 1


def find_fault(loss: float, grad_norm: float, recent: list[list[float]], threshold: float) -> str | None:
    """Return why a step must not be applied, or None if it may be.

    Args:
        loss: of the step, in nats per token.
        grad_norm: of its gradient before clipping.
        recent: loss and gradient norm of applied steps before it.
        threshold: standard deviations over the mean of `recent` that make a spike; 0: never.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return "not finite"
    if threshold and len(recent) >= MIN_STEPS:
        for column, (name, value) in enumerate((("loss", loss), ("gradient norm", grad_norm))):
            usual = NormalDist.from_samples([step[column] for step in recent])
            if value > usual.mean + threshold * usual.stdev:
                return f"a spike: the last {len(recent)} had a {name} of {usual.mean:.4g} +- {usual.stdev:.2g}"
    return None


def may_be_applied(
    loss: float, grad_norm: float, progress: Progress, settings: TrainingSettings, checkpoint_dir: Path
) -> bool:
    """Return True if the step under way may be applied, and count it in `progress`.

    The answer is the same on all processes, and after a resume.

    Raises:
        Diverged: the step is bad and settings say to stop, or too many before it were bad too.
    """
    fault = find_fault(loss, grad_norm, progress.recent_steps, settings.spike_threshold)
    if fault is None:
        progress.apply_step((loss, grad_norm), WINDOW if settings.spike_threshold else 0)
        return True
    if settings.on_bad_step == "stop" or progress.skipped_in_a_row == MAX_SKIPPED:
        raise Diverged(
            f"stopped at step {progress.global_step + 1}, which was not applied: loss {loss:.4g}, gradient norm "
            f"{grad_norm:.4g} ({fault}); {remedy(progress, checkpoint_dir)}"
        )
    progress.skip_step()
    return False


def remedy(progress: Progress, checkpoint_dir: Path) -> str:
    """Name what a user can do about a bad step; the output folder takes no run but this one."""
    again = "start again in another --output_dir with a lower --learning_rate"
    if progress.skipped_in_a_row:
        return f"so were {progress.skipped_in_a_row} steps before it: {again}"
    checkpoints = find_checkpoints(checkpoint_dir)
    if not checkpoints:
        return f"there is no checkpoint yet: {again} or --on_bad_step skip"
    return f"resume from {checkpoints[0]} with --resume --on_bad_step skip, or {again}"

"""The part of a run that changes with each step and travels in every checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields


@dataclass
class Progress:
    """The position of a run. Together with the settings it determines the data that comes next."""

    global_step: int = 0  # completed optimizer steps
    epoch: int = 0  # epoch of the next step
    step_in_epoch: int = 0  # completed steps of that epoch
    tokens_seen: int = 0  # labels that counted in all completed steps
    order_seed: int | None = None  # of the window order of this epoch
    history_bytes: int = 0  # size of history.jsonl
    best_step: int | None = None  # step with the lowest validation loss, where the settings ask for it
    best_validation_loss: float | None = None  # nats per token
    skipped_steps: int = 0  # completed steps that were not applied
    is_step_open: bool = False  # a signal cut off evaluation and sample after the last step: both are still due
    skipped_in_a_row: int = 0  # newest skipped steps without an applied one in between
    recent_steps: list[list[float]] = field(default_factory=list)  # loss and gradient norm, if spikes are looked for
    whole_losses: list[float] | None = None  # of these weights: see set_losses
    history_sha256: str | None = None  # of history.jsonl; None: written by a version that did not hash it
    schedule_steps: int | None = None  # of a run that was lengthened: its steps before, at which the rate is lowest
    # Where minutes bound the run, the wall time of all its processes one after the other:
    seconds: float = 0.0  # up to the last step, starts included
    start_seconds: float = 0.0  # of the longest start, up to its first step
    step_seconds: float = 0.0  # from step to step, all together
    timed_steps: int = 0  # how many those are
    scoring_seconds: float = 0.0  # of the last evaluation after a step, for each window of the validation text
    saving_seconds: float = 0.0  # of the last checkpoint
    expected_steps: int | None = None  # before the first step; warm-up and evaluations are those of so many
    planned_steps: int | None = None  # by the time that is left

    def restore(self, saved: "Progress") -> None:
        """Take over all values of another moment."""
        for item in fields(self):
            setattr(self, item.name, getattr(saved, item.name))

    def finish_epoch(self) -> None:
        """Move to the first step of the next epoch."""
        self.epoch, self.step_in_epoch, self.order_seed = self.epoch + 1, 0, None

    def finish_step(self, num_tokens: int) -> None:
        """Count a completed step over `num_tokens` labels, applied or not."""
        self.global_step += 1
        self.step_in_epoch += 1
        self.tokens_seen += num_tokens
        self.whole_losses = None

    def apply_step(self, figures: Sequence[float], window: int) -> None:
        """Note that the step under way is applied, and keep loss and gradient norm of the last `window` steps."""
        self.skipped_in_a_row = 0
        if window:
            self.recent_steps = [*self.recent_steps, list(figures)][-window:]

    def skip_step(self) -> None:
        """Note that the step under way is not applied."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1

    def count_start(self, seconds: float) -> None:
        """Add the wall time of a process up to its first step."""
        self.seconds, self.start_seconds = self.seconds + seconds, max(self.start_seconds, seconds)

    def count_step(self, seconds: float) -> None:
        """Add the wall time of a step with all that was done since the last one."""
        self.seconds += seconds
        self.step_seconds, self.timed_steps = self.step_seconds + seconds, self.timed_steps + 1

    def note_saving(self, seconds: float) -> None:
        """Note the time that a checkpoint took."""
        self.saving_seconds = seconds

    def note_scoring(self, seconds: float) -> None:
        """Note the time that an evaluation took for each window of the validation text."""
        self.scoring_seconds = seconds

    def plan_steps(self, expected: int | None, planned: int | None) -> None:
        """Set how many steps the run has, as it was expected before the first and as it is planned now."""
        self.expected_steps, self.planned_steps = expected, planned

    def set_losses(self, losses: Sequence[float] | None) -> None:
        """Set training loss, validation loss and its standard error over as much text as the end scores, or forget."""
        self.whole_losses = None if losses is None else list(losses)

    def note_if_best(self, validation_loss: float) -> bool:
        """Remember this step if no other had a validation loss as low, and return True then."""
        is_best = self.best_validation_loss is None or validation_loss < self.best_validation_loss
        if is_best:
            self.best_step, self.best_validation_loss = self.global_step, validation_loss
        return is_best

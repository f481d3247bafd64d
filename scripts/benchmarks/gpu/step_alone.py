"""Our training step alone: its profile, its memory beside the estimate; and the largest batch of each candidate."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.benchmarks.peer_models import Task, draw_weights

from .largest_batch import measure_largest
from .memory_estimate import SETTINGS, compare_memory
from .plan import Plan
from .record import Outcome
from .step_candidates import NANOGPT, OURS, OURS_EAGER, STOCK
from .step_profile import profile_step


def items(plan: Plan, folder: Path) -> dict[str, Callable[[], Outcome]]:
    """Return all items; the longest last, as the time may end."""
    draw_weights(Task(**plan.task_fields(str(folder))), seed=0)
    profiles = {f"profile, {name}": partial(profile_step, name, plan, folder) for name in (OURS_EAGER, OURS)}
    estimates = {name: partial(compare_memory, plan, folder, changes) for name, changes in SETTINGS.items()}
    largest = {
        f"largest batch, {name}": partial(measure_largest, name, plan, folder) for name in (OURS, NANOGPT, STOCK)
    }
    return {**profiles, **estimates, **largest}

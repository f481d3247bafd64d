"""Our training step alone: its profile, its memory beside the estimate; and the largest batch of each candidate."""

from functools import partial
from pathlib import Path

from scripts.benchmarks.peer_models import Task, draw_weights

from .largest_batch import item_of, measure_largest
from .memory_estimate import SETTINGS, compare_memory
from .parts import Item
from .plan import Plan
from .step_candidates import NANOGPT, OURS, OURS_EAGER, STOCK
from .step_profile import profile_step


def items(plan: Plan, folder: Path) -> dict[str, Item]:
    """Return all items; those that compile last, as the time may end."""
    draw_weights(Task(**plan.task_fields(str(folder))), seed=0)
    names = (OURS_EAGER, OURS, NANOGPT, STOCK)
    largest: dict[str, Item] = {item_of(name): partial(measure_largest, name, plan, folder) for name in names}
    return {
        f"profile, {OURS_EAGER}": partial(profile_step, OURS_EAGER, plan, folder),
        **{name: partial(compare_memory, plan, folder, changes) for name, changes in SETTINGS.items()},
        **largest,
        f"profile, {OURS}": partial(profile_step, OURS, plan, folder),
    }

"""The memory that `--dry_run` foretells, beside that of a run."""

from pathlib import Path
from typing import Any

import torch

from hf_gpt_scratch.training.dry_run import model_config, process_memory
from scripts.benchmarks.measuring import describe_limit
from scripts.benchmarks.peer_models import Task
from scripts.benchmarks.training_steps import draw_tokens, our_run, our_step

from .devices import begin_peak, peak_bytes
from .plan import Plan
from .record import Outcome


SETTINGS: dict[str, dict[str, Any]] = {
    "memory": {},
    "memory, gradient_checkpointing": {"gradient_checkpointing": True},
    "memory, four windows": {"per_device_train_batch_size": 4},
}
WITHIN = 0.15
STEPS = 3  # the optimizer has its state after the first


def compare_memory(plan: Plan, folder: Path, changes: dict[str, Any]) -> Outcome:
    """Compare the estimate of `--dry_run` with the peak of a run: of its start and of steps."""
    rows = changes.get("per_device_train_batch_size", plan.rows)
    task = Task(**plan.task_fields(str(folder), rows=rows))
    # The estimate counts a process of a CPU in full.
    held = torch.cuda.memory_allocated() if plan.device == "cuda" else 0
    begin_peak(plan.device)
    run = our_run(task, **changes)
    step = our_step(run)
    for number in range(STEPS):
        step(*draw_tokens(task, number))
    peak = peak_bytes(plan.device) - held
    estimate = process_memory(model_config(run.settings, None), run.settings, run.accelerator)
    line = f"estimated {estimate / 1e9:.2f} GB, reached {peak / 1e9:.2f} GB with {rows} windows"
    limit = describe_limit("|estimate / peak - 1|", [abs(estimate / peak - 1)], "at most", WITHIN)
    return Outcome([line], {"estimate": estimate, "peak": peak}, [limit])

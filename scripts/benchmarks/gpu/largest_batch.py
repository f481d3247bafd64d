"""The training step with the largest batch that fits: each candidate alone.

How many windows fit is estimated by the peak that `step_speed` has recorded for a smaller batch, then by those of the
batches that were tried.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_gpt_scratch.runtime.out_of_memory import is_out_of_memory
from scripts.benchmarks.measuring import Measurement, describe_limit, format_spread, spread
from scripts.benchmarks.peer_models import VOCAB_SIZE, Task

from .parts import free_device
from .plan import Plan
from .record import MissingError, Outcome, Record
from .step_candidates import NANOGPT, OURS, OURS_EAGER, measured_step
from .step_speed import FASTER, MFU, utilizations


USABLE = 0.92  # of the free memory; the rest is what the estimate does not see
WORTH_TRYING = 1.04  # times the largest batch so far
TRIES = 3  # each may compile for half a minute
BYTES_OF_PARAMETER = 16  # weight, gradient and AdamW's two moments, in float32


def item_of(name: str) -> str:
    """Return the name of a candidate's item."""
    return f"largest batch, {name}"


def measure_largest(name: str, plan: Plan, folder: Path) -> Iterator[Outcome]:
    """Measure a step with the largest batch that a few tries find.

    Yields:
        The largest so far, after each that fits.

    Raises:
        MissingError: the candidate, or the peak by which its first batch is chosen.
        ValueError: no batch fits.
    """
    if name == NANOGPT and plan.nanogpt is None:
        raise MissingError("nanoGPT, without --nanogpt")
    steps = Record(folder.parent, "step_speed").items.values()
    # Before it is compiled, our step is measured by the start of the run.
    names = (OURS, OURS_EAGER) if name == OURS else (name,)
    measured_before = [item["figures"].get("candidates", {}) for item in steps]
    peaks = [one[each][-1]["details"]["peak_bytes"] for one in measured_before for each in names if each in one]
    if not peaks:
        raise MissingError("the peak of a step, by which the batch is chosen: run the part step_speed with it")
    free = plan.memory or torch.cuda.mem_get_info()[0]
    own = Record(folder.parent, "step_alone").items.get(item_of(OURS), {"figures": {}})["figures"].get("samples", [])
    rows, fits, fails = largest_rows(plan, plan.rows, max(peaks), free), 0, 0
    tried: list[int] = []
    while rows and len(tried) < TRIES:
        tried.append(rows)
        try:
            samples = sample_step(name, plan, Task(**plan.task_fields(str(folder), rows=rows)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fails = rows
            rows = (fits + fails) // 2
        else:
            yield outcome_of(name, tried, samples, own)
            fits, peak = rows, samples[-1].details["peak_bytes"]
            # What was tried is a better estimate, and half of the way to what did not fit is close enough.
            rows = largest_rows(plan, rows, peak, free) if not fails else (fits + fails) // 2
        free_device(plan.device)
        if rows < WORTH_TRYING * fits:
            return
    if not fits:
        raise ValueError(f"no batch of {tried} windows fits")


def sample_step(name: str, plan: Plan, task: Task) -> list[Measurement]:
    """Measure a step; what it has built does not outlive the call, so that the next one finds the memory free."""
    measure = measured_step(name, plan, task)
    return [Measurement(0, 0, 0, measure()) for _ in range(plan.rounds)]


def outcome_of(name: str, tried: list[int], samples: list[Measurement], own: list[dict[str, Any]]) -> Outcome:
    """Return speed, MFU and memory of the last batch that was tried, and the limits of our step."""
    speeds = spread([sample.details["tokens_per_second"] for sample in samples])
    memory = samples[-1].details["peak_bytes"] / 2**20
    mfu = utilizations(samples)
    line = (
        f"{tried[-1]} windows, {format_spread(speeds, 0)} tokens/s, MFU {spread(mfu)[1]:.1%}, peak {memory:,.0f} MiB"
    )
    limits = [describe_limit(f"MFU, {OURS}", mfu, "at least", MFU)] if name == OURS else []
    if name == NANOGPT and own:
        ours = spread([details["tokens_per_second"] for details in own])[1]
        limits = [describe_limit(f"{OURS} / {NANOGPT}", [ours / speed for speed in speeds], "at least", FASTER)]
    return Outcome([line], {"rows": [*tried], "samples": [sample.details for sample in samples]}, limits)


def largest_rows(plan: Plan, rows: int, peak: int, free: int) -> int:
    """Return how many windows fit, by the peak of a step with some, but no fewer than one.

    Args:
        plan: of the step.
        rows: windows of that step.
        peak: its bytes.
        free: bytes of the device.
    """
    task = Task(**plan.task_fields(""))
    parameters = 12 * task.layers * task.width**2 + (VOCAB_SIZE + task.context) * task.width
    fixed = BYTES_OF_PARAMETER * parameters
    of_window = max(peak - fixed, 1) / rows
    return max(1, int((USABLE * free - fixed) / of_window))

"""The training step with the largest batch that fits, a power of two of windows: each candidate alone.

How many windows fit is estimated by the peak that `step_speed` has recorded for a smaller batch.
"""

from pathlib import Path

import torch

from hf_gpt_scratch.runtime.out_of_memory import is_out_of_memory
from scripts.benchmarks.measuring import Measurement, format_spread, spread
from scripts.benchmarks.peer_models import VOCAB_SIZE, Task

from .parts import free_device
from .plan import Plan
from .record import DONE, MissingError, Outcome, Record
from .step_candidates import NANOGPT, OURS, OURS_EAGER, measured_step
from .step_speed import utilizations


USABLE = 0.85  # of the free memory; the rest is what the estimate does not see
MOST_ROWS = 1024
BYTES_OF_PARAMETER = 16  # weight, gradient and AdamW's two moments, in float32


def measure_largest(name: str, plan: Plan, folder: Path) -> Outcome:
    """Measure a step with the largest batch; halve it where it does not fit."""
    if name == NANOGPT and plan.nanogpt is None:
        raise MissingError("nanoGPT, without --nanogpt")
    steps = Record(folder.parent, "step_speed").items.values()
    # Before it is compiled, our step is measured by the start of the run.
    names = (OURS, OURS_EAGER) if name == OURS else (name,)
    measured_before = [item["figures"]["candidates"] for item in steps if item["result"] == DONE]
    peaks = [one[each][-1]["details"]["peak_bytes"] for one in measured_before for each in names if each in one]
    if not peaks:
        raise MissingError("the peak of a step, by which the batch is chosen: run the part step_speed with it")
    rows, tried = largest_rows(plan, max(peaks), plan.memory or torch.cuda.mem_get_info()[0]), []
    while rows >= 1:
        tried.append(rows)
        try:
            return outcome_of(tried, sample_step(name, plan, Task(**plan.task_fields(str(folder), rows=rows))))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        rows //= 2
        free_device(plan.device)
    raise ValueError("no batch fits")


def sample_step(name: str, plan: Plan, task: Task) -> list[Measurement]:
    """Measure a step; what it has built does not outlive the call, so that a smaller one finds the memory free."""
    measure = measured_step(name, plan, task)
    return [Measurement(0, 0, 0, measure()) for _ in range(plan.rounds)]


def outcome_of(tried: list[int], samples: list[Measurement]) -> Outcome:
    """Return speed, MFU and memory of the last batch that was tried."""
    speeds = spread([sample.details["tokens_per_second"] for sample in samples])
    memory = samples[-1].details["peak_bytes"] / 2**20
    mfu = spread(utilizations(samples))[1]
    line = f"{tried[-1]} windows, {format_spread(speeds, 0)} tokens/s, MFU {mfu:.1%}, peak {memory:,.0f} MiB"
    return Outcome([line], {"rows": tried, "samples": [sample.details for sample in samples]})


def largest_rows(plan: Plan, peak: int, free: int) -> int:
    """Return the largest power of two of windows that fits, by the peak of a step with `plan.rows` windows.

    Args:
        plan: of the step.
        peak: its bytes.
        free: bytes of the device.
    """
    task = Task(**plan.task_fields(""))
    parameters = 12 * task.layers * task.width**2 + (VOCAB_SIZE + task.context) * task.width
    fixed = BYTES_OF_PARAMETER * parameters
    of_window = max(peak - fixed, 1) / plan.rows
    fitting = max(1, int((USABLE * free - fixed) / of_window))
    return min(MOST_ROWS, 2 ** (fitting.bit_length() - 1))

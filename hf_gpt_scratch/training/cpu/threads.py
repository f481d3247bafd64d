"""Choose by a short measurement how many threads a run computes with on a CPU, where nobody asked for a number."""

import os
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from hf_gpt_scratch.training.checkpoints.checkpoint import recorded_state
from hf_gpt_scratch.training.preflight import compute_gradients, is_compiled, micro_batch
from hf_gpt_scratch.training.reporting.mfu import flops_per_token
from hf_gpt_scratch.training.settings import TrainingSettings


VARIABLE = "OMP_NUM_THREADS"
MEASURED_SECONDS = 0.3  # for each number of threads
MOST_FLOPS = 5e10  # of a micro-batch that is measured; products are so large in a larger one that all threads pay
LEAST_SPEEDUP = 1.3  # of fewer threads: on a quiet machine the number, and so the bits, shall not vary between runs


def choose_threads(model: nn.Module, settings: TrainingSettings, accelerator: Accelerator) -> str | None:
    """Set the number of threads to the one with which a micro-batch is fastest; in a resumed run as it began.

    Threads wait for each other at the end of each operation. In a small model that costs more than it brings, and
    beside another busy process they wait for the one whose core is taken. The bits of a sum depend on the number of
    threads, therefore a resumed run keeps its own. Several processes share the cores as the launcher says.

    Returns:
        A line about the choice; None if there was none.
    """
    if accelerator.num_processes > 1 or VARIABLE in os.environ or torch.get_num_threads() == 1:
        return None
    if settings.resume and (state := recorded_state(settings)) is not None:
        if 0 < state.num_threads < torch.get_num_threads():
            torch.set_num_threads(state.num_threads)
        return None
    if is_compiled(settings, accelerator):  # for one number of threads
        return None
    batch = micro_batch(settings, accelerator.device)
    of_token = flops_per_token(accelerator.unwrap_model(model), settings.window_size)
    if batch["input_ids"].numel() * of_token > MOST_FLOPS:
        return None
    try:
        with torch.random.fork_rng():
            return take_fastest(lambda: compute_gradients(model, batch, accelerator))
    finally:
        model.zero_grad(set_to_none=True)


def take_fastest(work: Callable[[], None]) -> str:
    """Set the number of threads to the fastest of all, all but one, a half, a quarter and so on; report the times.

    Fewer threads are taken only if they are clearly faster than all, which are measured before and after them.
    """
    most = torch.get_num_threads()
    halves = [most >> shift for shift in range(1, most.bit_length())]
    measured = {most: mean_seconds(work)}
    for number in sorted({most - 1, *halves}, reverse=True):
        torch.set_num_threads(number)
        measured[number] = mean_seconds(work)
    torch.set_num_threads(most)
    measured[most] = min(measured[most], mean_seconds(work))
    fastest = min(measured, key=lambda number: measured[number])
    chosen = fastest if measured[fastest] * LEAST_SPEEDUP < measured[most] else most
    torch.set_num_threads(chosen)
    times = ", ".join(f"{1000 * seconds:.3g} ms with {number}" for number, seconds in measured.items())
    return f"threads: {chosen} of {most}, since a micro-batch takes {times}; {VARIABLE} sets another number"


def mean_seconds(work: Callable[[], None]) -> float:
    """Measure the seconds of work: the mean, since threads that wait for a busy core do so now and then."""
    work()  # warms up
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < MEASURED_SECONDS or count < 2:
        work()
        count += 1
    return passed / count

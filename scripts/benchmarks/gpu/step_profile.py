"""The time of our training step by its parts, its waits for the device, and the memory that `--dry_run` foretells."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from scripts.benchmarks.measuring import describe_limit
from scripts.benchmarks.peer_models import Task, draw_weights
from scripts.benchmarks.training_steps import draw_tokens, our_run

from .devices import begin_peak, held_bytes, peak_bytes, seconds_of
from .plan import Plan
from .record import Outcome
from .step_candidates import OURS, OURS_EAGER, WARM_UP, build_step


# Names of operators, autograd functions and kernels, in lower case; the first group with a match counts, of the name
# itself before those of what called it.
PARTS = {
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "gemm", "nvjet", "cutlass", "xmma", "cublas"),
    "optimizer": ("optimizer.", "adam", "foreach", "multi_tensor", "clip_grad"),
    "loss": ("crossentropy", "cross_entropy", "log_softmax", "nll_loss"),
}
SECONDARY = ("optimizer", "loss")  # who calls a product or attention does not matter
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = "aten::_local_scalar_dense"  # stands for them on a CPU
STEP = "one step of training"
MOST_WAITS = 1  # that of the loss and the gradient's norm
SETTINGS: dict[str, dict[str, Any]] = {
    "memory": {},
    "memory, gradient_checkpointing": {"gradient_checkpointing": True},
    "memory, a quarter of the batch": {"rows": 4},
}
WITHIN = 0.15


def items(plan: Plan, folder: Path) -> dict[str, Callable[[], Outcome]]:
    """Return the profiles and the estimates."""
    draw_weights(Task(**plan.task_fields(str(folder))), seed=0)
    profiles = {f"profile, {name}": partial(profile_step, name, plan, folder) for name in (OURS_EAGER, OURS)}
    estimates = {name: partial(compare_memory, plan, folder, changes) for name, changes in SETTINGS.items()}
    return {**profiles, **estimates}


def profile_step(name: str, plan: Plan, folder: Path) -> Outcome:
    """Profile a step, and count how often it waits for the device."""
    task = Task(**plan.task_fields(str(folder)))
    step, batch = build_step(name, plan, task), draw_tokens(task, 0)
    for _ in range(WARM_UP):
        step(*batch)
    wall = seconds_of(lambda: step(*batch), plan.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (plan.device == "cuda")
    with profile(activities=activities) as profiler:
        with record_function(STEP):
            step(*batch)
        if plan.device == "cuda":
            torch.cuda.synchronize()
    events = profiler.events()
    seconds = seconds_by_part(events, plan.device)
    busy = sum(seconds.values())
    waits = count_waits(events, plan.device)
    shares = ", ".join(f"{part} {seconds[part] / busy:.1%}" for part in [*PARTS, "others"])
    lines = [
        f"{shares}; {busy * 1e3:.1f} ms of operators or kernels in a step of {wall * 1e3:.1f} ms",
        f"{waits} waits for the device in a step",
    ]
    figures = {"seconds": dict(seconds), "wall": wall, "waits": waits, "longest": longest(events, plan.device)}
    return Outcome(lines, figures, [describe_limit("waits for the device", [waits], "at most", MOST_WAITS)])


def seconds_by_part(events: Any, device: str) -> Counter[str]:
    """Sum up by part the seconds of the kernels that each operator has started, on a CPU those of the operators."""
    seconds: Counter[str] = Counter()
    for event in events:
        for names, one in costs(event, device):
            seconds[part_of(names)] += one
    return seconds


def costs(event: Any, device: str) -> Iterator[tuple[list[str], float]]:
    """Yield the names by which a cost of an operator is to be judged, the nearest first, and its seconds."""
    callers, parent = [], event
    while parent is not None:
        callers.append(parent.name.lower())
        parent = parent.cpu_parent
    if device == "cuda":
        for kernel in event.kernels:
            yield [kernel.name.lower(), *callers], kernel.duration / 1e6
    elif event.device_type == torch.autograd.DeviceType.CPU:
        yield callers, event.self_cpu_time_total / 1e6


def part_of(names: list[str]) -> str:
    """Return the part that the nearest of the names belongs to; what calls does not make a product or attention."""
    for place, name in enumerate(names):
        for part, marks in PARTS.items():
            if any(mark in name for mark in marks) and (place < 2 or part in SECONDARY or part == "attention"):
                return part
    return "others"


def count_waits(events: Any, device: str) -> int:
    """Count the calls within the step in which the processor waits for the device."""
    whole = next(event.time_range for event in events if event.name == STEP)
    names = WAITS if device == "cuda" else (READS,)
    return sum(
        event.name in names and whole.start <= event.time_range.start and event.time_range.end <= whole.end
        for event in events
    )


def longest(events: Any, device: str) -> list[tuple[str, float, int]]:
    """Return name, seconds and calls of the twenty longest kernels, or on a CPU operators."""
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        for names, one in costs(event, device):
            seconds[names[0]] += one
            calls[names[0]] += 1
    return [(name, one, calls[name]) for name, one in seconds.most_common(20)]


def compare_memory(plan: Plan, folder: Path, changes: dict[str, Any]) -> Outcome:
    """Compare the estimate of `--dry_run` with the peak of a run: of its start and of steps."""
    from hf_gpt_scratch.training.dry_run import model_config, process_memory

    rows = min(changes.get("rows", plan.rows), plan.rows)
    task = Task(**plan.task_fields(str(folder), rows=rows))
    settings = {name: value for name, value in changes.items() if name != "rows"}
    held = held_bytes(plan.device) if plan.device == "cuda" else 0  # the estimate counts a process of a CPU in full
    begin_peak(plan.device)
    run = our_run(task, **settings)
    take_steps(run, task)
    peak = peak_bytes(plan.device) - held
    config = model_config(run.settings, None)
    estimate = process_memory(config, run.settings, run.accelerator)
    line = f"estimated {estimate / 1e9:.2f} GB, reached {peak / 1e9:.2f} GB with {rows} windows"
    limit = describe_limit("|estimate / peak - 1|", [abs(estimate / peak - 1)], "at most", WITHIN)
    return Outcome([line], {"estimate": estimate, "peak": peak}, [limit])


def take_steps(run: Any, task: Task) -> None:
    """Take steps until the optimizer has its state."""
    from scripts.benchmarks.training_steps import our_step

    step = our_step(run)
    for number in range(WARM_UP):
        step(*draw_tokens(task, number))

"""The time of our training step by its parts, and its waits for the device."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from scripts.benchmarks.measuring import describe_limit
from scripts.benchmarks.peer_models import Task
from scripts.benchmarks.training_steps import draw_tokens

from .devices import seconds_of
from .plan import Plan
from .record import Outcome
from .step_candidates import WARM_UP, build_step


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
READS = ("aten::_local_scalar_dense", "tolist of tensor")  # stand for them on a CPU
CPU_READS = ("_fused_adamw_", "refuse_beyond_context")  # callers whose reads there are none of on a GPU
STEP = "one step of training"
MOST_WAITS = 1  # that of the loss and the gradient's norm


def profile_step(name: str, plan: Plan, folder: Path) -> Outcome:
    """Profile a step, and count how often it waits for the device."""
    task = Task(**plan.task_fields(str(folder)))
    step, batch = build_step(name, plan, task), draw_tokens(task, 0)
    for _ in range(WARM_UP):
        step(*batch)
    wall = seconds_of(lambda: step(*batch), plan.device)
    events = events_of(lambda: step(*batch), plan.device)
    seconds = seconds_by_part(events, plan.device)
    busy = sum(seconds.values())
    # On a CPU the callers of a read matter, and recording them takes time.
    of_waits = events if plan.device == "cuda" else events_of(lambda: step(*batch), plan.device, with_stack=True)
    waits = count_waits(of_waits, plan.device)
    shares = ", ".join(f"{part} {seconds[part] / busy:.1%}" for part in [*PARTS, "others"])
    lines = [
        f"{shares}; {busy * 1e3:.1f} ms of operators or kernels in a step of {wall * 1e3:.1f} ms",
        f"{waits} waits for the device in a step",
    ]
    figures = {"seconds": seconds, "wall": wall, "waits": waits, "longest": longest(events, plan.device)}
    return Outcome(lines, figures, [describe_limit("waits for the device", [waits], "at most", MOST_WAITS)])


def events_of(work: Callable[[], Any], device: str, with_stack: bool = False) -> Any:
    """Return what the profiler sees of a step, with Python's functions if asked."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, with_stack=with_stack) as profiler:
        with record_function(STEP):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
    return profiler.events()


def seconds_by_part(events: Any, device: str) -> dict[str, float]:
    """Sum up by part the seconds of the kernels that each operator has started, on a CPU those of the operators."""
    seconds = dict.fromkeys([*PARTS, "others"], 0.0)
    for event in events:
        for names, one in costs(event, device):
            seconds[part_of(names)] += one
    kernels = [one for one in events if one.device_type == DeviceType.CUDA and not one.is_user_annotation]
    started_by_none = sum(one.self_device_time_total for one in kernels) / 1e6 - sum(seconds.values())
    seconds["others"] += max(0.0, started_by_none) if device == "cuda" else 0.0
    return seconds


def callers_of(event: Any) -> list[str]:
    """Return the names of an event and of those that it was called in, the nearest first, in lower case."""
    names, one = [], event
    while one is not None:
        names.append(one.name.lower())
        one = one.cpu_parent
    return names


def costs(event: Any, device: str) -> Iterator[tuple[list[str], float]]:
    """Yield the names by which a cost of an operator is to be judged, the nearest first, and its seconds."""
    if device == "cuda":
        for kernel in event.kernels:
            yield [kernel.name.lower(), *callers_of(event)], kernel.duration / 1e6
    elif event.device_type == DeviceType.CPU:
        yield callers_of(event), event.self_cpu_time_total / 1e6


def part_of(names: list[str]) -> str:
    """Return the part that the nearest of the names belongs to; what calls does not make a product or attention."""
    for place, name in enumerate(names):
        for part, marks in PARTS.items():
            if any(mark in name for mark in marks) and (place < 2 or part in SECONDARY or part == "attention"):
                return part
    return "others"


def count_waits(events: Any, device: str) -> int:
    """Count the calls within the step in which the processor waits for the device.

    On a CPU they are the numbers and lists that are read, but for those of `CPU_READS`; events are with Python's
    functions.
    """
    whole = next(event.time_range for event in events if event.name == STEP)
    inside = [one for one in events if whole.start <= one.time_range.start and one.time_range.end <= whole.end]
    if device == "cuda":
        return sum(event.name in WAITS for event in inside)
    reads = [callers_of(one) for one in inside if any(mark in one.name.lower() for mark in READS)]
    return sum(not any(mark in name for name in names for mark in CPU_READS) for names in reads)


def longest(events: Any, device: str) -> list[tuple[str, float, int]]:
    """Return name, seconds and calls of the twenty longest kernels, or on a CPU operators."""
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for event in events:
        for names, one in costs(event, device):
            seconds[names[0]] += one
            calls[names[0]] += 1
    return [(name, one, calls[name]) for name, one in sorted(seconds.items(), key=lambda row: -row[1])[:20]]

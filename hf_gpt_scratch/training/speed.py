"""The seconds of the parts of a run on this machine, measured before its first step without changing it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from hf_gpt_scratch.evaluation import evaluation_mode
from hf_gpt_scratch.training.peak_flops import synchronize
from hf_gpt_scratch.training.plan import batches_together
from hf_gpt_scratch.training.preflight import compute_gradients, is_compiled, micro_batch
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.stopping import largest


LONG_SECONDS = 5.0  # of work in which warming up makes no difference
REPEAT_SECONDS, MAX_REPEATS = 0.3, 10  # for repeating shorter work, after the second time
MAX_TOGETHER = 4  # batches of an evaluation; more are hardly faster
WORK_OF_GENERATE = 1.5  # times the forward pass of a token: what a token of `generate()` takes
BYTES_PER_SECOND = 300e6  # of a checkpoint: copied, hashed and written


@dataclass(frozen=True)
class Speed:
    """Seconds of the parts of a run."""

    micro_batch: float  # forward and backward
    update: float = 0.0  # clipping and optimizer, once a step
    scoring: float = 0.0  # the windows of a micro-batch, forward alone
    sample: float = 0.0  # none where the model is compiled, once more for other shapes
    checkpoint: float = 0.0


def measure_speed(
    model: nn.Module, optimizer: Optimizer, settings: TrainingSettings, accelerator: Accelerator
) -> Speed:
    """Measure what a run will do again and again. Collective: call on every process.

    The model is prepared by Accelerate, the optimizer PyTorch's own, before its first step. The gradients are dropped,
    and generators, weights and optimizer left as they were.
    """
    batch, compiled = micro_batch(settings, accelerator.device), is_compiled(settings, accelerator)
    num_together = 1 if compiled else min(MAX_TOGETHER, batches_together(settings))
    scored = {
        name: value.repeat(num_together, 1) if torch.is_tensor(value) else value for name, value in batch.items()
    }
    token = {"input_ids": batch["input_ids"][:1, :1], "use_cache": False}

    def seconds(work: Callable[[], Any]) -> float:
        return fastest(work, accelerator)

    try:
        with evaluation_mode(model):
            scoring = seconds(lambda: model(**scored)) / num_together
            of_token = seconds(lambda: model(**token)) if settings.sample_tokens and not compiled else 0.0
        # After the forward passes, since FSDP2 keeps some weights whole until a backward pass, and would miss it if a
        # checkpoint were loaded meanwhile.
        with torch.random.fork_rng():
            of_micro_batch = seconds(lambda: compute_gradients(model, batch, accelerator))
        model.zero_grad(set_to_none=True)
        update = 0.0 if settings.optimizer_in_backward else seconds_of_update(model, optimizer, settings, accelerator)
    finally:
        model.zero_grad(set_to_none=True)
    copies = 2 if settings.optim == "muon" else 3  # a weight that is trained has its optimizer state beside it
    num_bytes = sum(each.nbytes * (copies if each.requires_grad else 1) for each in model.parameters())
    sample = settings.sample_tokens * WORK_OF_GENERATE * of_token
    return Speed(of_micro_batch, update, scoring, sample, num_bytes / BYTES_PER_SECOND)


def seconds_of_update(
    model: nn.Module, optimizer: Optimizer, settings: TrainingSettings, accelerator: Accelerator
) -> float:
    """Measure clipping and a step of the optimizer, with gradients of zero at a rate of zero: no weight changes."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def update() -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm or 1.0)
        optimizer.step()

    try:
        return fastest(update, accelerator)
    finally:
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def fastest(work: Callable[[], Any], accelerator: Accelerator) -> float:
    """Measure the seconds of work, those of the slowest process. Collective: call on every process.

    The first time warms up, and counts only if it is a long one. Of those that another third of a second has time
    for, at most ten, the fastest counts.
    """

    def seconds() -> float:
        started = time.perf_counter()
        work()
        synchronize(accelerator.device)
        return time.perf_counter() - started

    first = largest(accelerator, [seconds()])[0]  # so that all processes try as often
    if first > LONG_SECONDS:
        return first
    second = largest(accelerator, [seconds()])[0]
    repeats = min(MAX_REPEATS - 1, int(REPEAT_SECONDS / second)) if second else 0
    return min([second, *(seconds() for _ in range(repeats))])

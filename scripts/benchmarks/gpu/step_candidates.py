"""Training steps on a device, each in a process of its own (`workers`) or alone in that of a part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_gpt_scratch.registration import GPTScratchConfig
from hf_gpt_scratch.training.peak_flops import measure_peak_flops, product_dtype
from hf_gpt_scratch.training.reporting.mfu import flops_per_token
from scripts.benchmarks.peer_models import NANOGPT_VOCAB_SIZE, VOCAB_SIZE, Task
from scripts.benchmarks.training_steps import (
    NUM_LOSSES,
    Step,
    draw_tokens,
    nanogpt_step,
    our_run,
    our_step,
    stock_step,
)

from .devices import begin_peak, peak_bytes, seconds_of
from .plan import Plan


OURS, OURS_EAGER, NANOGPT, STOCK = "ours, compiled", "ours", "nanoGPT, compiled", "transformers, compiled"
WARM_UP = 3  # steps; the second has the optimizer's state, and one more fills the allocator


def build_step(name: str, plan: Plan, task: Task) -> Step:
    """Return the step of a candidate."""
    if name == NANOGPT:
        return nanogpt_step(task, Path(str(plan.nanogpt)), plan.backend, NANOGPT_VOCAB_SIZE)
    if name == STOCK:
        return stock_step(task, plan.backend)
    run = our_run(task)
    if name == OURS:
        run.model.compile(backend=plan.backend)  # what --torch_compile does, without the other shapes of set_up
    return our_step(run)


def make_candidate(name: str, plan_fields: dict[str, Any], folder: str) -> Callable[[], dict[str, Any]]:
    """Return the work of a sample of `workers`; the first one builds, compiles and warms up."""
    plan = Plan(**plan_fields)
    measured: list[Callable[[], dict[str, Any]]] = []

    def work() -> dict[str, Any]:
        if not measured:
            measured.append(measured_step(name, plan, Task(**plan.task_fields(folder))))
        return measured[0]()

    return work


def measured_step(name: str, plan: Plan, task: Task) -> Callable[[], dict[str, Any]]:
    """Build a step, take the first ones, and return a function that measures the next ones.

    It returns `losses` of the first steps in nats per token, `peak_bytes` of steps without the start,
    `tokens_per_second`, and the FLOP/s of `model` and of a bf16 `product` beside it.
    """
    flops = model_flops(task)  # first: what transformers has compiled is compiled again once another model is built
    step = build_step(name, plan, task)
    # A few batches that are there already: moving tokens is not part of a step.
    batches = [draw_tokens(task, number) for number in range(NUM_LOSSES)]
    losses = [round(float(step(*batch)), 6) for batch in batches]
    begin_peak(task.device)
    for batch in batches[:WARM_UP]:
        step(*batch)
    tokens = plan.steps * task.rows * task.length

    def several() -> None:
        for number in range(plan.steps):
            step(*batches[number % len(batches)])

    def measure() -> dict[str, Any]:
        speed = tokens / seconds_of(several, task.device)
        figures = {"tokens_per_second": speed, "model": speed * flops}
        product = measure_peak_flops(torch.device(task.device), product_dtype(task.precision))
        return {"losses": losses, "peak_bytes": peak_bytes(task.device), "product": product} | figures

    return measure


def model_flops(task: Task) -> float:
    """Return the FLOPs of a token, forward and backward: 6N + 12LHQT, the same for all candidates."""
    from transformers import AutoModelForCausalLM

    config = GPTScratchConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=task.width,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        max_position_embeddings=task.context,
    )
    with torch.device("meta"):
        return flops_per_token(AutoModelForCausalLM.from_config(config), task.length)

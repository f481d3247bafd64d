"""The training step of GPT-2 124M against its peers: speed, MFU and memory, in turn and in one run."""

import concurrent.futures
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.benchmarks.measuring import (
    Measurement,
    Results,
    describe_limit,
    format_spread,
    in_rounds,
    ratios,
    spread,
)
from scripts.benchmarks.peer_models import Task, draw_weights
from scripts.benchmarks.workers import Candidate, Worker

from .parts import Item, last_line
from .plan import Plan
from .record import Outcome
from .step_candidates import NANOGPT, OURS, OURS_EAGER, STOCK


LOSSES = 5e-3  # nats per token between the first losses, in bf16
MFU, FASTER = 0.55, 1.15
MEMORY = {NANOGPT: 0.75, STOCK: 0.55}  # ours over theirs


def items(plan: Plan, folder: Path) -> dict[str, Item]:
    """Return the one item: all candidates with the same batch."""
    return {f"a step of {plan.rows} x {plan.length} tokens": partial(compare_steps, plan, folder)}


def compare_steps(plan: Plan, folder: Path) -> Iterator[Outcome]:
    """Start all candidates at once, which compile for a minute each, then sample them in turn.

    A candidate that fails, or is not ready in time, is named, and the others go on.

    Yields:
        What is known after the start of each candidate, and after each round.

    Raises:
        ValueError: ours failed.
    """
    draw_weights(Task(**plan.task_fields(str(folder))), seed=0)
    names = [name for name in (OURS, OURS_EAGER, NANOGPT, STOCK) if name != NANOGPT or plan.nanogpt]
    left_out = {} if plan.nanogpt else {NANOGPT: "not there, without --nanogpt"}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(candidate(name, plan, folder), plan.threads)) for name in names}
        firsts, failures = {}, {}
        with ThreadPoolExecutor(len(workers)) as pool:
            started: dict[Future[Measurement], str] = {
                pool.submit(worker.sample): name for name, worker in workers.items()
            }
            try:
                for one in as_completed(started, timeout=plan.start_seconds):
                    if error := one.exception():
                        failures[started[one]] = last_line(error)
                    else:
                        firsts[started[one]] = one.result()
                    yield outcome_of_start(firsts, left_out | failures)
            except concurrent.futures.TimeoutError:
                for name in workers.keys() - firsts.keys() - failures.keys():
                    failures[name] = f"not ready after {plan.start_seconds:.0f} s"
                    workers[name].process.kill()
        failures |= other_work(firsts)
        if OURS not in firsts:
            raise ValueError(failures[OURS])
        samplers = {name: workers[name].sample for name in firsts if name not in failures}
        for results in in_rounds(samplers, plan.rounds):
            measured = {name: list(map(by_token, samples)) for name, samples in results.items()}
            yield outcome_of(measured, left_out | failures)


def candidate(name: str, plan: Plan, folder: Path) -> Candidate:
    """Return a candidate of `workers`."""
    options = {"name": name, "plan_fields": asdict(plan), "folder": str(folder)}
    return Candidate(name, f"{__package__}.step_candidates:make_candidate", options)


def other_work(firsts: dict[str, Measurement]) -> dict[str, str]:
    """Return the candidates whose losses of the first steps are not ours, and what they are."""
    expected = firsts[OURS].details["losses"] if OURS in firsts else None
    losses = {name: sample.details["losses"] for name, sample in firsts.items()}
    return {
        name: f"does other work: its first losses are {found}, ours {expected}"
        for name, found in losses.items()
        if expected and any(abs(one - other) > LOSSES for one, other in zip(found, expected, strict=True))
    }


def by_token(sample: Measurement) -> Measurement:
    """Return a sample with the microseconds of a token as its wall time, and the device's peak in MiB."""
    details = sample.details
    return replace(sample, wall=1e6 / details["tokens_per_second"], memory=details["peak_bytes"] / 2**20)


def outcome_of_start(firsts: dict[str, Measurement], failures: dict[str, str]) -> Outcome:
    """Return the memory of the candidates that are ready; their speed beside those that still compile is none."""
    figures = {name: [vars(sample)] for name, sample in firsts.items()}
    lines = [f"{name:24} peak {sample.details['peak_bytes'] / 2**20:,.0f} MiB" for name, sample in firsts.items()]
    lines += [f"{name:24} {line}" for name, line in failures.items()]
    return Outcome(["no round yet", *lines], {"candidates": figures, "failures": failures})


def outcome_of(results: Results, failures: dict[str, str]) -> Outcome:
    """Return the lines, figures and limits of all candidates."""
    lines = [f"{len(results)} candidates, tokens/s min / median / max:"]
    for name, samples in results.items():
        speeds = spread([sample.details["tokens_per_second"] for sample in samples])
        utilization, memory = spread(utilizations(samples))[1], max(sample.memory for sample in samples)
        lines.append(f"{name:24} {format_spread(speeds, 0):>32}  MFU {utilization:6.1%}  peak {memory:,.0f} MiB")
    lines += [f"{name:24} {line}" for name, line in failures.items()]
    products = [sample.details["product"] for samples in results.values() for sample in samples]
    lines.append(f"a product in bf16 reaches {format_spread([one / 1e12 for one in spread(products)])} TFLOP/s")
    figures = {name: [vars(sample) for sample in samples] for name, samples in results.items()}
    return Outcome(lines, {"candidates": figures, "failures": failures}, list(limits_of(results)))


def utilizations(samples: list[Measurement]) -> list[float]:
    """Return the model's FLOP/s over those of the product beside it, sample by sample."""
    return [sample.details["model"] / sample.details["product"] for sample in samples]


def limits_of(results: Results) -> list[dict[str, Any]]:
    """Return the aims: of our MFU, of speed over nanoGPT's, and of memory."""
    limits = [describe_limit(f"MFU, {OURS}", utilizations(results[OURS]), "at least", MFU)]
    limits += [
        describe_limit(f"{peer} / {OURS}", ratios(results, "wall", peer, OURS), "at least", FASTER)
        for peer in (NANOGPT, STOCK)
        if peer in results
    ]
    for peer, limit in MEMORY.items():
        if peer in results:
            values = ratios(results, "memory", OURS, peer)
            limits.append(describe_limit(f"memory, {OURS} / {peer}", values, "at most", limit))
    return limits

"""Greedy texts of 1, 8 and 64 rows in bf16: ours, transformers' GPT-2, and a compiled loop written by hand."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import StaticCache

from hf_gpt_scratch.generation.fast_decoding import generate
from scripts.benchmarks.generation_runs import Continue, Text, draw_prompts, our_model, our_sampling
from scripts.benchmarks.measuring import (
    Measurement,
    Results,
    describe_limit,
    format_spread,
    in_rounds,
    ratios,
    spread,
)
from scripts.benchmarks.peer_models import Task, draw_weights, stock_model

from .devices import compile_config, seconds_of
from .parts import Item, last_line
from .plan import Plan
from .record import Outcome


OURS, OURS_STATIC = "ours", "ours, static cache"
STOCK, STOCK_STATIC, LOOP = "transformers", "transformers, static cache", "compiled loop by hand"


def items(plan: Plan, folder: Path) -> dict[str, Item]:
    """Return an item for each number of rows."""
    draw_weights(Task(**plan.task_fields(str(folder))), seed=0)
    return {
        f"{rows} x {plan.prompt} + {plan.new} tokens": partial(compare_texts, plan, folder, rows)
        for rows in plan.decode_rows
    }


def compare_texts(plan: Plan, folder: Path, rows: int) -> Iterator[Outcome]:
    """Build and warm up all candidates, then sample them in turn; one that fails is named, and the others go on.

    Yields:
        What is known after each candidate is warm, and after each round.

    Raises:
        ValueError: ours failed.
    """
    task, text = Task(**plan.task_fields(str(folder), rows=rows)), Text(rows, plan.prompt, plan.new)
    ours = our_model(task).to(plan.device, torch.bfloat16)
    stock: Any = stock_model(task).eval()
    stock.to(plan.device, torch.bfloat16)
    stock.generation_config.update(eos_token_id=None, pad_token_id=0, use_cache=True)
    prompts = draw_prompts(text).to(plan.device)
    mask = torch.ones_like(prompts)
    plain: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": text.new, "do_sample": False}
    static: dict[str, Any] = {"cache_implementation": "static", "compile_config": compile_config(plan.decode_mode)}
    ways: dict[str, Continue] = {
        OURS: lambda ids: generate(ours, ids, attention_mask=mask, **our_sampling(text)),
        OURS_STATIC: lambda ids: ours.generate(ids, **plain, **static),
        STOCK: lambda ids: stock.generate(ids, **plain, use_cache=True),
        STOCK_STATIC: lambda ids: stock.generate(ids, **plain, **static),
        LOOP: compiled_loop(ours, plan, text),
    }
    failures: dict[str, str] = {}
    same: dict[str, float] = {}
    expected = prompts
    samplers = {name: partial(sample, way, prompts, text, plan.device) for name, way in ways.items()}
    firsts: Results = {}
    for name, way in ways.items():
        try:
            ids = continued(way, prompts, text)
            continued(way, prompts, text)  # now all is compiled
            firsts[name] = [samplers[name]()]
        except Exception as error:
            if name == OURS:
                raise
            failures[name] = last_line(error)
        else:
            expected = ids if name == OURS else expected
            same[name] = float((ids == expected).float().mean())
        yield outcome_of(firsts, failures, same, text)
    for results in in_rounds({name: samplers[name] for name in firsts}, plan.rounds):
        yield outcome_of(results, failures, same, text)


def continued(way: Continue, prompts: torch.Tensor, text: Text) -> torch.Tensor:
    """Return the new ids [rows, new]; raise ValueError if they are fewer."""
    with torch.no_grad():
        new = way(prompts)[:, text.prompt :]
    if new.shape[1] != text.new:
        raise ValueError(f"added {new.shape[1]} tokens instead of {text.new}")
    return new.clone()


def sample(way: Continue, prompts: torch.Tensor, text: Text, device: str) -> Measurement:
    """Measure a text."""
    return Measurement(0, seconds_of(lambda: continued(way, prompts, text), device), 0)


def compiled_loop(model: Any, plan: Plan, text: Text) -> Continue:
    """Return a greedy loop without `generate()`: our model, a static cache, a step that is compiled as a whole."""
    cache = StaticCache(config=model.config, max_cache_len=text.prompt + text.new)

    def next_ids(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits = model(ids, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits
        return logits[:, -1].argmax(dim=-1, keepdim=True)

    step = torch.compile(next_ids, fullgraph=True, **plan.decode_mode)

    def way(prompts: torch.Tensor) -> torch.Tensor:
        cache.reset()
        positions = torch.arange(text.prompt, device=prompts.device)[None].expand(len(prompts), -1)
        ids = [prompts, next_ids(prompts, positions)]
        position = torch.full((len(prompts), 1), text.prompt, device=prompts.device)
        for _ in range(text.new - 1):
            torch.compiler.cudagraph_mark_step_begin()
            ids.append(step(ids[-1], position).clone())  # a captured step writes its result to one place
            position = position + 1
        return torch.cat(ids, dim=1)

    return way


def outcome_of(results: Results, failures: dict[str, str], same: dict[str, float], text: Text) -> Outcome:
    """Return the lines, figures and limits of all candidates."""
    tokens = text.rows * text.new
    lines = [f"{len(results)} candidates, tokens/s min / median / max:"]
    for name, samples in results.items():
        speeds = spread([tokens / one.wall for one in samples])
        lines.append(f"{name:28} {format_spread(speeds, 0):>28}  {same[name]:.0%} of the ids are ours")
    lines += [f"{name:28} {line}" for name, line in failures.items()]
    figures = {name: [one.wall for one in samples] for name, samples in results.items()}
    limits = [
        describe_limit(f"{peer} / {OURS}", ratios(results, "wall", peer, OURS), "at least", 1.0)
        for peer in (STOCK, STOCK_STATIC, LOOP)
        if peer in results
    ]
    return Outcome(lines, {"seconds": figures, "same ids": same, "failures": failures}, limits)

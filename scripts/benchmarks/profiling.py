"""Profiles of a training step and of a generated text by operators, which show the reason for a missed limit."""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

from . import generation, training
from .measuring import Results, build_report
from .peer_benchmark import Entry, PeerBenchmark
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

OURS, PRODUCTS_ALONE = "ours", "if only matrix products took time"
SMALL: dict[str, Any] = {"heads": 4, "context": 64, "length": 64, "vocab_size": 257}
SETTINGS: dict[str, training.Setting | generation.Setting] = {
    "train-4x128": training.Setting("4 layers of 128, 12 x 64 tokens", layers=4, width=128, rows=12, **SMALL),
    "train-2x64": training.Setting("2 layers of 64, 8 x 64 tokens", layers=2, width=64, rows=8, **SMALL),
    "train-2x256": training.SETTINGS["124M-2x256"],
    "train-2x1024": training.SETTINGS["124M-2x1024"],
    "train-4x128-muon": training.Setting(
        "4 layers of 128, 12 x 64 tokens, Muon", layers=4, width=128, rows=12, **SMALL
    ),
    "train-2x1024-dropout": replace(training.SETTINGS["124M-2x1024"], text="124M, 2 x 1024 tokens, dropout 0.1"),
    "generate-1": generation.SETTINGS["1-greedy"],
    "train-tiny": training.SETTINGS["tiny"],
    "generate-tiny": generation.SETTINGS["tiny"],
}
CHANGES: dict[str, dict[str, Any]] = {"train-4x128-muon": {"optim": "muon"}, "train-2x1024-dropout": {"dropout": 0.1}}
FORWARD = "forward of the model"  # what it takes beside its operators is Python
PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")}
PRODUCTS |= {"mkldnn::_linear_pointwise"}
NUM_SHOWN = 10


def make_profiled(make: str, options: dict[str, Any]) -> Callable[[], Callable[[], dict[str, Any]]]:
    """Run the work of another candidate, `make` as "module:name", under PyTorch's profiler, whose own time is in it.

    The details of a sample are `operators`, each with its seconds, without those of operators that it calls, and its
    number of calls; the longest first.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    from hf_gpt_scratch.model.modeling_gpt_scratch import GPTScratchForCausalLM

    module, _, name = make.partition(":")
    work = getattr(importlib.import_module(module), name)(**options)

    def profiled() -> Callable[[], dict[str, Any]]:
        forward = GPTScratchForCausalLM.forward
        recorded = functools.wraps(forward)(record_function(FORWARD)(forward))
        with (
            mock.patch.object(GPTScratchForCausalLM, "forward", recorded),
            profile(activities=[ProfilerActivity.CPU]) as profiler,
        ):
            work()
        return lambda: {"operators": operators_of(profiler)}

    return profiled


def operators_of(profiler: Any) -> list[tuple[str, float, int]]:
    """Return name, seconds and calls of all operators of a finished profile, the longest first."""
    averages = profiler.key_averages()
    rows = [(average.key, average.self_cpu_time_total / 1e6, average.count) for average in averages]
    return sorted(rows, key=lambda row: row[1], reverse=True)


class Profiling(PeerBenchmark):
    """Profiles of our step or text, beside a yardstick of the machine's speed."""

    help = "the time of a training step and of a generated text, by operators"
    packages = ("torch", "transformers")
    settings = SETTINGS
    default_settings = tuple(name for name in SETTINGS if not name.endswith("tiny"))

    def report(self, name: str, task_fields: dict[str, Any], arguments: "argparse.Namespace") -> dict[str, Any]:
        """Profile a setting. The profile is that of the last round."""
        setting, machine = SETTINGS[name], self.describe_machine(arguments)
        entries: Mapping[str, Entry]
        options, other_options = {"task_fields": task_fields}, {}
        if isinstance(setting, training.Setting):
            entries, module, other = training.ENTRIES, "training_steps", training.PRODUCT
        else:
            entries, module, other = generation.ENTRIES, "generation_runs", generation.READING
            options = other_options = {"task_fields": task_fields, "text_fields": setting.text_fields}
        work = entries[OURS].candidate(OURS, module, options | CHANGES.get(name, {}), arguments)
        yardstick = entries[other].candidate(other, module, other_options, arguments)
        profiled = Candidate(OURS, f"{__name__}:make_profiled", {"make": work.make, "options": work.options})
        results = run_workers([yardstick, profiled], arguments.rounds, arguments.threads)
        profile = profile_of(results)
        bound = bound_of(setting, results, yardstick.name, profile["products"])
        for sample in results[OURS]:
            sample.details.clear()  # the last of them is in the profile
        return build_report("profile", setting.text, machine, results, part=name, profile=profile | {"bound": bound})


def profile_of(results: Results) -> dict[str, Any]:
    """Return seconds of our last sample: in all, in matrix products, in the longest operators and in the others."""
    last = results[OURS][-1]
    operators = [row for row in last.details["operators"] if row[0] != FORWARD]
    shown, others = operators[:NUM_SHOWN], operators[NUM_SHOWN:]
    return {
        "wall": last.wall,
        "products": sum(seconds for name, seconds, _ in operators if name in PRODUCTS),
        "operators": shown,
        "others": sum(seconds for _, seconds, _ in others),
        "forward": sum(seconds for name, seconds, _ in last.details["operators"] if name == FORWARD),
    }


def bound_of(
    setting: training.Setting | generation.Setting, results: Results, yardstick: str, products: float
) -> dict[str, Any]:
    """Return the part of the machine's speed that is reached if nothing but the matrix products takes time."""
    wall = results[yardstick][-1].wall
    if isinstance(setting, training.Setting):
        part = setting.flops / training.PRODUCT_FLOPS * wall / products
        return {"text": f"part of torch.mm's FLOP/s, {PRODUCTS_ALONE}", "value": part}
    reads = results[yardstick][-1].details["reads"]
    part = setting.new / reads * wall / products
    return {"text": f"part of the memory's bandwidth, {PRODUCTS_ALONE}", "value": part}

"""Where the time of a training step and of a generated text goes, by operators: what a missed limit is to blame on."""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import generation, training
from .measuring import Results, build_report, describe_machine, measure
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

HELP = "where the time of a training step and of a generated text goes, by operators"
KEY_PACKAGES = ("torch", "transformers")
OURS, PRODUCTS_ALONE = "ours", "if only matrix products took time"
SETTINGS = {
    "train-2x256": (training, "124M-2x256"),
    "train-2x1024": (training, "124M-2x1024"),
    "generate-1": (generation, "1-greedy"),
    "train-tiny": (training, "tiny"),
    "generate-tiny": (generation, "tiny"),
}
DEFAULT_SETTINGS = tuple(name for name in SETTINGS if not name.endswith("tiny"))
PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")}
PRODUCTS |= {"mkldnn::_linear_pointwise"}
NUM_SHOWN = 10


def make_profiled(make: str, options: dict[str, Any]) -> Callable[[], Callable[[], dict[str, Any]]]:
    """The work of another candidate, `make` as "module:name", under PyTorch's profiler, whose own time is in it.

    What a sample says of itself: `operators`, each with its seconds, without those of operators that it calls, and its
    number of calls; the longest first.
    """
    from torch.profiler import ProfilerActivity, profile

    module, _, name = make.partition(":")
    work = getattr(importlib.import_module(module), name)(**options)

    def profiled() -> Callable[[], dict[str, Any]]:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            work()
        return lambda: {"operators": operators_of(profiler)}

    return profiled


def operators_of(profiler: Any) -> list[tuple[str, float, int]]:
    """Name, seconds and calls of all operators of a finished profile."""
    averages = profiler.key_averages()
    rows = [(average.key, average.self_cpu_time_total / 1e6, average.count) for average in averages]
    return sorted(rows, key=lambda row: row[1], reverse=True)


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Options of this benchmark alone."""
    parser.add_argument(
        "--settings", nargs="+", metavar="NAME", choices=SETTINGS, default=DEFAULT_SETTINGS,
        help=f"{', '.join(SETTINGS)} (default: all but the tiny ones)",
    )  # fmt: skip


def run(arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
    """Profile each setting.

    Yields:
        All figures of a setting, ready for JSON.

    Raises:
        ValueError: a candidate fails, or an option is wrong.
    """
    for name in arguments.settings:
        with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as folder:
            yield run_setting(name, arguments, folder)


def run_setting(name: str, arguments: "argparse.Namespace", folder: str) -> dict[str, Any]:
    """All figures of one setting; `folder` is there for the weights. The profile is that of the last round."""
    benchmark, key = SETTINGS[name]
    setting = benchmark.SETTINGS[key]
    task = benchmark.task_of(setting, folder)
    measure([sys.executable, "-c", benchmark.DRAW_WEIGHTS, json.dumps(task)])
    machine = describe_machine(KEY_PACKAGES, arguments.threads)
    if benchmark is training:
        work = Candidate(OURS, f"{training.STEPS}:make_ours", {"task": task})
        yardstick = Candidate(
            training.PRODUCT, f"{training.STEPS}:make_product", training.ENTRIES[training.PRODUCT].options
        )
    else:
        options = {"task": task, "text": generation.text_of(setting)}
        work = Candidate(OURS, f"{generation.RUNS}:make_ours", options)
        yardstick = Candidate(generation.READING, f"{generation.RUNS}:make_reading", options)
    profiled = Candidate(OURS, f"{__name__}:make_profiled", {"make": work.make, "options": work.options})
    results = run_workers([yardstick, profiled], arguments.rounds, arguments.threads)
    profile = profile_of(results)
    bound = bound_of(benchmark, setting, results, yardstick.name, profile["products"])
    for sample in results[OURS]:
        sample.details.clear()  # the last of them is in the profile
    return build_report("profile", setting.text, machine, results, part=name, profile=profile | {"bound": bound})


def profile_of(results: Results) -> dict[str, Any]:
    """Seconds of our last sample: as a whole, in matrix products, in the longest operators and in all others."""
    last = results[OURS][-1]
    operators = last.details["operators"]
    shown, others = operators[:NUM_SHOWN], operators[NUM_SHOWN:]
    return {
        "wall": last.wall,
        "products": sum(seconds for name, seconds, _ in operators if name in PRODUCTS),
        "operators": shown,
        "others": sum(seconds for _, seconds, _ in others),
    }


def bound_of(benchmark: Any, setting: Any, results: Results, yardstick: str, products: float) -> dict[str, Any]:
    """What would be reached of the machine's speed if nothing but the matrix products took time."""
    wall = results[yardstick][-1].wall
    if benchmark is training:
        part = setting.flops / training.PRODUCT_FLOPS * wall / products
        return {"text": f"part of torch.mm's FLOP/s, {PRODUCTS_ALONE}", "value": part}
    reads = results[yardstick][-1].details["reads"]
    part = setting.new / reads * wall / products
    return {"text": f"part of the memory's bandwidth, {PRODUCTS_ALONE}", "value": part}

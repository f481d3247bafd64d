"""Generated texts timed against those of transformers, nanoGPT, litgpt and the tutorial's cached model."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measuring import Results, build_report, compare, describe_limit, describe_machine, measure, ratios
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

HELP = "generated texts, against transformers, nanoGPT, litgpt and the tutorial"
KEY_PACKAGES = ("torch", "transformers")
RUNS = "scripts.benchmarks.generation_runs"
DRAW_WEIGHTS = """
import json
import sys
from scripts.benchmarks.peer_models import Task, draw_weights
draw_weights(Task(**json.loads(sys.argv[1])), seed=0)
"""
GPT2_124M = {"layers": 12, "width": 768, "heads": 12, "context": 1024}
TINY = {"layers": 2, "width": 32, "heads": 2, "context": 64}  # for trying the benchmark itself
OURS, INT8, BARE, PAYLOAD = "ours", "ours, int8", "ours, without generate()", "ours, without the package"
READING, STOCK = "weights read once", "transformers"


@dataclass(frozen=True)
class Entry:
    """Who takes part, what must be given for it, whether its greedy ids are ours, and its time over ours at least."""

    make: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None  # option of the command line
    same_ids: bool = True
    limit: float | None = 1.0


ENTRIES = {
    OURS: Entry("make_ours", limit=None),
    INT8: Entry("make_ours", {"int8": True}, same_ids=False, limit=None),
    BARE: Entry("make_bare_loop", limit=None),
    PAYLOAD: Entry("make_payload", limit=None),
    READING: Entry("make_reading", same_ids=False, limit=None),
    STOCK: Entry("make_transformers"),
    "litgpt (rotary positions)": Entry("make_litgpt", needs="peer_python", same_ids=False),
    "tutorial, cached": Entry("make_tutorial", needs="peer_python"),
    "nanoGPT (no cache)": Entry("make_nanogpt", needs="nanogpt"),
}
PREFILLS = {
    OURS: Entry("make_prefill", {"ours": True}, limit=None),
    STOCK: Entry("make_prefill", {"ours": False}),
}
CACHED = tuple(name for name in ENTRIES if "no cache" not in name)


@dataclass(frozen=True)
class Setting:
    """Sizes of the model and the texts, who takes part, and what is asked for there."""

    text: str
    model: dict[str, int]
    rows: int
    prompt: int = 64
    new: int = 128
    sampled: bool = False
    entries: dict[str, Entry] = field(default_factory=lambda: ENTRIES)
    names: tuple[str, ...] = CACHED
    stock_limit: float = 1.25  # transformers' time over ours
    int8_limit: float = 2.3  # and over ours with int8 weights
    rounds: int | None = None  # where they are minutes long


SETTINGS = {
    "1-greedy": Setting("124M, 1 x 64 + 128 tokens, greedy", GPT2_124M, rows=1),
    "8-greedy": Setting("124M, 8 x 64 + 128 tokens, greedy", GPT2_124M, rows=8, stock_limit=1.15),
    "1-sampled": Setting("124M, 1 x 64 + 128 tokens, sampled", GPT2_124M, rows=1, sampled=True),
    "8-sampled": Setting("124M, 8 x 64 + 128 tokens, sampled", GPT2_124M, rows=8, sampled=True, stock_limit=1.15),
    "1-uncached": Setting(
        "124M, 1 x 64 + 128 tokens, greedy", GPT2_124M, rows=1, names=(OURS, "nanoGPT (no cache)"), rounds=2
    ),
    "8-uncached": Setting(
        "124M, 8 x 64 + 128 tokens, greedy", GPT2_124M, rows=8, names=(OURS, "nanoGPT (no cache)"), rounds=1
    ),
    "prefill": Setting(
        "124M, the prompt of 64 tokens", GPT2_124M, rows=1, new=0, entries=PREFILLS, names=tuple(PREFILLS),
        stock_limit=1.0,
    ),
    "tiny": Setting("tiny, 2 x 8 + 40 tokens, greedy", TINY, rows=2, prompt=8, new=40, names=tuple(ENTRIES)),
    "tiny-sampled": Setting("tiny, 2 x 8 + 40 tokens, sampled", TINY, rows=2, prompt=8, new=40, sampled=True),
}  # fmt: skip
DEFAULT_SETTINGS = tuple(name for name in SETTINGS if not name.startswith("tiny"))


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Options of this benchmark alone."""
    parser.add_argument(
        "--settings", nargs="+", metavar="NAME", default=DEFAULT_SETTINGS,
        help=f"{', '.join(SETTINGS)} (default: all but the tiny ones)",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", metavar="PEER", help="compare ours with these alone, of all that it prints"
    )


def run(arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
    """Run all candidates of each setting in turn.

    Yields:
        All figures of a setting, ready for JSON.

    Raises:
        ValueError: a candidate fails or does other work, or an option is wrong.
    """
    for given, known in ((arguments.settings, SETTINGS), (arguments.only or [], ENTRIES)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"unknown {unknown[0]!r}: choose from {'; '.join(known)}")
    for name in arguments.settings:
        with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as folder:
            yield run_setting(name, arguments, folder)


def run_setting(name: str, arguments: "argparse.Namespace", folder: str) -> dict[str, Any]:
    """All figures of one setting; `folder` is there for the weights."""
    setting = SETTINGS[name]
    task = task_of(setting, folder)
    measure([sys.executable, "-c", DRAW_WEIGHTS, json.dumps(task)])
    machine = describe_machine(KEY_PACKAGES, arguments.threads)
    candidates = list(candidates_of(setting, task, arguments))
    rounds = min(arguments.rounds, setting.rounds or arguments.rounds)
    results = run_workers(candidates, rounds, arguments.threads)
    check_work(results, setting)
    return build_report(
        "generate",
        setting.text,
        machine,
        results,
        part=name,
        comparisons=compare(without_reading(results), "wall", OURS),
        limits=list(limits_of(results, setting)),
        left_out=[f"{one}, without --{needs}" for one, needs in out_of_reach(setting, arguments)],
    )


def task_of(setting: Setting, folder: str) -> dict[str, Any]:
    """Fields of `peer_models.Task`."""
    return setting.model | {"rows": setting.rows, "length": setting.prompt, "folder": folder}


def text_of(setting: Setting) -> dict[str, Any]:
    """Fields of `generation_runs.Text`."""
    return {key: getattr(setting, key) for key in ("rows", "prompt", "new", "sampled")}


def candidates_of(setting: Setting, task: dict[str, Any], arguments: "argparse.Namespace") -> Iterator[Candidate]:
    """Those of a setting for whom all that they need is given."""
    text = text_of(setting)
    unreachable = {name for name, _ in out_of_reach(setting, arguments)}
    for name in setting.names:
        entry = setting.entries[name]
        is_asked_for = not arguments.only or name in (OURS, *arguments.only)
        # The loop without generate() is greedy.
        if name in unreachable or not is_asked_for or (name == BARE and setting.sampled):
            continue
        options = {"task": task, "text": text, **entry.options}
        if entry.needs == "nanogpt":
            options["source"] = str(arguments.nanogpt)
        python = arguments.peer_python if entry.needs == "peer_python" else Path(sys.executable)
        yield Candidate(name, f"{RUNS}:{entry.make}", options, python)


def out_of_reach(setting: Setting, arguments: "argparse.Namespace") -> list[tuple[str, str]]:
    """Who cannot take part, and the option that is not given."""
    needs = {name: setting.entries[name].needs for name in setting.names}
    return [(name, option) for name, option in needs.items() if option and getattr(arguments, option) is None]


def check_work(results: Results, setting: Setting) -> None:
    """See that everyone added as many tokens as we did, and greedily the same ones where the model is the same.

    Raises:
        ValueError: a candidate did other work.
    """
    ours = results[OURS][-1].details
    for name, samples in without_reading(results).items():
        for sample in samples:
            if sample.details["tokens"] != ours["tokens"]:
                raise ValueError(f"{name} added {sample.details['tokens']} tokens, ours {ours['tokens']}")
            if setting.entries[name].same_ids and not setting.sampled and sample.details["ids"] != ours["ids"]:
                raise ValueError(f"{name} does other work: its ids are {sample.details['ids']}, ours {ours['ids']}")


def without_reading(results: Results) -> Results:
    """All but the reading of memory, which generates nothing."""
    return {name: samples for name, samples in results.items() if name != READING}


def limits_of(results: Results, setting: Setting) -> Iterator[dict[str, Any]]:
    """How much more time than ours every peer must take, and which part of the memory's speed we reach."""
    for name in results:
        limit = setting.stock_limit if name == STOCK else setting.entries[name].limit
        if limit is not None:
            yield describe_limit(f"{name} / ours", ratios(results, "wall", name, OURS), "at least", limit)
    if STOCK in results and INT8 in results:
        values = ratios(results, "wall", STOCK, INT8)
        yield describe_limit(f"{STOCK} / {INT8}", values, "at least", setting.int8_limit)
    if READING in results and setting.rows == 1:
        # A text reads all weights once for each token. What is asked for is the most that a trial reached.
        reads = results[READING][0].details["reads"]
        values = [setting.new / reads * ratio for ratio in ratios(results, "wall", READING, OURS)]
        yield describe_limit("part of the memory's bandwidth", values, "at least", 0.76)

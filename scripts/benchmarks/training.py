"""A training step timed against those of nanoGPT, transformers, litgpt and the tutorial's package."""

import json
import math
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

HELP = "a training step, against nanoGPT, transformers, litgpt and the tutorial"
KEY_PACKAGES = ("torch", "transformers", "accelerate")
VOCAB_SIZE = 50257
STEPS = "scripts.benchmarks.training_steps"
DRAW_WEIGHTS = """
import json
import sys
from scripts.benchmarks.peer_models import Task, draw_weights
draw_weights(Task(**json.loads(sys.argv[1])), seed=0)
"""


@dataclass(frozen=True)
class Setting:
    """Sizes of the model, the batch, and what is asked for there beside the limits that hold everywhere."""

    text: str
    layers: int
    width: int
    heads: int
    context: int
    rows: int
    length: int
    share_of_rounds: float = 1.0  # fewer where a step takes long
    least_part_of_peak: float | None = None
    memory_limits: tuple[tuple[str, str, float], ...] = ()  # whose memory, over whose, at most

    @property
    def flops(self) -> float:
        """FLOPs of the products of a step, forward and backward; of attention, the masked half does not count."""
        per_token = 12 * self.layers * self.width**2 + self.width * VOCAB_SIZE + self.layers * self.width * self.length
        return 6 * self.rows * self.length * per_token


GPT2_124M = {"layers": 12, "width": 768, "heads": 12, "context": 1024}
SMALL = {"layers": 6, "width": 384, "heads": 6, "context": 1024}
TINY = {"layers": 2, "width": 32, "heads": 2, "context": 64}  # for trying the benchmark itself
LEAST_MEMORY, DROPOUT = "ours, least memory", "ours, dropout 0.1"
SAVING = {"gradient_checkpointing": True, "optimizer_in_backward": True, "max_grad_norm": 0.0}
MEMORY_LIMITS = (
    ("ours", "nanoGPT", 0.75),
    ("ours", "transformers", 0.55),
    (LEAST_MEMORY, "nanoGPT", 0.55),
    (LEAST_MEMORY, "transformers", 0.40),
)
SETTINGS = {
    "124M-2x256": Setting("124M, 2 x 256 tokens", **GPT2_124M, rows=2, length=256, least_part_of_peak=0.80),
    "124M-4x256": Setting("124M, 4 x 256 tokens", **GPT2_124M, rows=4, length=256),
    "124M-2x1024": Setting(
        "124M, 2 x 1024 tokens",
        **GPT2_124M,
        rows=2,
        length=1024,
        share_of_rounds=0.5,
        least_part_of_peak=0.85,
        memory_limits=MEMORY_LIMITS,
    ),
    "small-4x256": Setting("6 layers of 384, 4 x 256 tokens", **SMALL, rows=4, length=256),
    "tiny": Setting("2 layers of 32, 2 x 16 tokens", **TINY, rows=2, length=16),
}
DEFAULT_SETTINGS = ("124M-2x256", "124M-2x1024", "small-4x256")


@dataclass(frozen=True)
class Entry:
    """Who takes part, what must be given for it, how many of its losses equal ours, and its time over ours."""

    make: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None  # option of the command line
    equal_losses: int = 3
    limit: float | None = 1.2
    bound: str = "at least"


PRODUCT = "torch.mm"
ALWAYS = (PRODUCT, "ours")
PRODUCT_SIZE, NUM_PRODUCTS = 1024, 24
PRODUCT_FLOPS = NUM_PRODUCTS * 2 * PRODUCT_SIZE**3
GROUPS = (
    {
        PRODUCT: Entry("make_product", {"size": PRODUCT_SIZE, "times": NUM_PRODUCTS}, equal_losses=0, limit=None),
        "ours": Entry("make_ours", limit=None),
        "nanoGPT": Entry("make_nanogpt", needs="nanogpt"),
        "nanoGPT, compiled": Entry("make_nanogpt", {"compiled": True}, needs="nanogpt"),
        "transformers": Entry("make_transformers"),
        "transformers Trainer": Entry("make_trainer"),
    },
    {
        PRODUCT: Entry("make_product", {"size": PRODUCT_SIZE, "times": NUM_PRODUCTS}, equal_losses=0, limit=None),
        "ours": Entry("make_ours", limit=None),
        "transformers, compiled": Entry("make_transformers", {"compiled": True}),
        "litgpt (rotary positions)": Entry("make_litgpt", needs="peer_python", equal_losses=0),
        "tutorial (untied head)": Entry("make_tutorial", needs="peer_python", equal_losses=1, limit=1.4),
        LEAST_MEMORY: Entry("make_ours", SAVING, equal_losses=1, limit=None),
        DROPOUT: Entry("make_ours", {"dropout": 0.1}, equal_losses=0, limit=1.03, bound="at most"),
    },
)
ENTRIES = {name: entry for group in GROUPS for name, entry in group.items()}
TOLERANCE = 1e-4  # nats per token


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Options of this benchmark alone."""
    known, default = ", ".join(SETTINGS), " ".join(DEFAULT_SETTINGS)
    parser.add_argument(
        "--settings", nargs="+", metavar="NAME", default=DEFAULT_SETTINGS, help=f"{known} (default: {default})"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PEER", help="compare ours with these alone, of all that it prints"
    )


def run(arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
    """Run all candidates in turn, group by group because not all fit into memory; ours is in each group.

    Yields:
        All figures of a setting, ready for JSON.

    Raises:
        ValueError: a candidate fails or computes another loss, or an option is wrong.
    """
    for given, known in ((arguments.settings, SETTINGS), (arguments.only or [], ENTRIES)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"unknown {unknown[0]!r}: choose from {'; '.join(known)}")
    for name in arguments.settings:
        with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as folder:
            yield run_setting(name, arguments, folder)


def run_setting(name: str, arguments: "argparse.Namespace", folder: str) -> dict[str, Any]:
    """All figures of one setting; `folder` is there for the initial weights and the output of the runs."""
    setting = SETTINGS[name]
    task = task_of(setting, folder)
    measure([sys.executable, "-c", DRAW_WEIGHTS, json.dumps(task)])
    machine = describe_machine(KEY_PACKAGES, arguments.threads)
    groups, together = [], {}
    rounds = math.ceil(arguments.rounds * setting.share_of_rounds)
    for group in GROUPS:
        candidates = list(candidates_of(group, task, arguments))
        if len(candidates) > len(ALWAYS):
            groups.append(run_workers(candidates, rounds, arguments.threads))
            check_losses(groups[-1])
    for results in groups:
        for candidate, samples in results.items():
            together.setdefault(candidate, []).extend(samples)
    return build_report(
        "train",
        setting.text,
        machine,
        together,
        part=name,
        comparisons=[row for results in groups for row in compare(without_product(results), "wall", "ours")],
        limits=[*speed_limits(groups), *peak_limits(groups, setting), *memory_limits(together, setting)],
        left_out=left_out(arguments),
    )


def task_of(setting: Setting, folder: str) -> dict[str, Any]:
    """Fields of `peer_models.Task`."""
    sizes = ("layers", "width", "heads", "context", "rows", "length")
    return {key: getattr(setting, key) for key in sizes} | {"folder": folder}


def candidates_of(
    group: dict[str, Entry], task: dict[str, Any], arguments: "argparse.Namespace"
) -> Iterator[Candidate]:
    """The members of a group for which all that they need is given."""
    for name, entry in group.items():
        is_asked_for = not arguments.only or name in arguments.only or name in ALWAYS
        if not is_asked_for or is_out_of_reach(entry, arguments):
            continue
        options = entry.options | ({} if name == PRODUCT else {"task": task})
        if entry.needs == "nanogpt":
            options["source"] = str(arguments.nanogpt)
        python = arguments.peer_python if entry.needs == "peer_python" else Path(sys.executable)
        yield Candidate(name, f"{STEPS}:{entry.make}", options, python)


def is_out_of_reach(entry: Entry, arguments: "argparse.Namespace") -> bool:
    """Whether an option that it needs is not given."""
    return entry.needs is not None and getattr(arguments, entry.needs) is None


def left_out(arguments: "argparse.Namespace") -> list[str]:
    """Who does not take part, and why."""
    return [f"{name}, without --{e.needs}" for name, e in ENTRIES.items() if is_out_of_reach(e, arguments)]


def check_losses(results: Results) -> None:
    """See that everyone computed what we did, as far as the architectures are the same.

    Raises:
        ValueError: a loss is another one.
    """
    expected = results["ours"][-1].details["losses"]
    for name, samples in results.items():
        pairs = list(zip(expected, samples[-1].details.get("losses", []), strict=False))[: ENTRIES[name].equal_losses]
        if any(abs(ours - theirs) > TOLERANCE for ours, theirs in pairs):
            ours, theirs = zip(*pairs, strict=True)
            raise ValueError(f"{name} does other work: its first losses are {theirs}, ours {ours}")


def without_product(results: Results) -> Results:
    """All but the matrix product, which is no training step."""
    return {name: samples for name, samples in results.items() if name != PRODUCT}


def speed_limits(groups: list[Results]) -> Iterator[dict[str, Any]]:
    """How much more time than ours every peer must take, and how little more dropout may."""
    for results in groups:
        for name in results:
            entry = ENTRIES[name]
            if entry.limit is not None:
                yield describe_limit(f"{name} / ours", ratios(results, "wall", name, "ours"), entry.bound, entry.limit)


def peak_limits(groups: list[Results], setting: Setting) -> Iterator[dict[str, Any]]:
    """FLOP/s of our step over those of a matrix product beside it."""
    if setting.least_part_of_peak is not None:
        flops = setting.flops / PRODUCT_FLOPS
        values = [flops * ratio for results in groups for ratio in ratios(results, "wall", PRODUCT, "ours")]
        yield describe_limit("part of torch.mm's FLOP/s", values, "at least", setting.least_part_of_peak)


def memory_limits(results: Results, setting: Setting) -> Iterator[dict[str, Any]]:
    """Peak memory of ours over that of peers."""
    peaks = {name: max(sample.memory for sample in samples) for name, samples in results.items()}
    for ours, peer, limit in setting.memory_limits:
        if ours in peaks and peer in peaks:
            yield describe_limit(f"memory, {ours} / {peer}", [peaks[ours] / peaks[peer]], "at most", limit)

"""A training step timed against those of nanoGPT, transformers, litgpt and the tutorial's package."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import peer_benchmark
from .measuring import Results, build_report, compare, describe_limit, ratios
from .peer_benchmark import GPT2_124M, TINY, PeerBenchmark, left_out
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

VOCAB_SIZE = 50257


@dataclass(frozen=True)
class Setting:
    """Sizes of the model, the batch, and the limits of this setting beside those of all."""

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
    vocab_size: int = VOCAB_SIZE

    @property
    def flops(self) -> float:
        """FLOPs of the products of a step, forward and backward, without the masked half of attention."""
        layer = 12 * self.width**2 + self.width * self.length
        per_token = self.layers * layer + self.width * self.vocab_size
        return 6 * self.rows * self.length * per_token

    def task_fields(self, folder: str) -> dict[str, Any]:
        """Return the fields of `peer_models.Task`."""
        sizes = ("layers", "width", "heads", "context", "rows", "length", "vocab_size")
        return {key: getattr(self, key) for key in sizes} | {"folder": folder}


SMALL: dict[str, Any] = {"layers": 6, "width": 384, "heads": 6, "context": 1024}
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


@dataclass(frozen=True)
class Entry(peer_benchmark.Entry):
    """A candidate, with the number of its losses that equal ours."""

    limit: float | None = 1.2
    bound: str = "at least"
    equal_losses: int = 3


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
FLOAT32 = "ours, float32"
BF16_GROUP = {
    PRODUCT: Entry(
        "make_product",
        {"size": PRODUCT_SIZE, "times": NUM_PRODUCTS, "dtype": "bfloat16"},
        equal_losses=0,
        limit=None,
    ),
    "ours": Entry("make_ours", limit=None),
    FLOAT32: Entry("make_ours", {"mixed_precision": "no"}, limit=2.3),
    "nanoGPT": Entry("make_nanogpt", needs="nanogpt", limit=1.3),
    "transformers": Entry("make_transformers", limit=1.3),
}
TOLERANCES = {"no": 1e-4, "bf16": 5e-3}  # nats per token


class Training(PeerBenchmark):
    """Training steps, group by group because not all candidates fit into memory; ours is in each group."""

    help = "a training step, against nanoGPT, transformers, litgpt and the tutorial"
    packages = ("torch", "transformers", "accelerate")
    settings = SETTINGS
    default_settings = ("124M-2x256", "124M-2x1024", "small-4x256")
    entries = BF16_GROUP | ENTRIES

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add `--mixed_precision` to the options of all benchmarks with peers."""
        super().add_arguments(parser)
        parser.add_argument(
            "--mixed_precision", choices=TOLERANCES, default="no", help="of all candidates (default: no, float32)"
        )

    def report(self, name: str, task_fields: dict[str, Any], arguments: "argparse.Namespace") -> dict[str, Any]:
        """Measure a setting."""
        setting, machine, precision = SETTINGS[name], self.describe_machine(arguments), arguments.mixed_precision
        entries, part, of_groups = ENTRIES, name, list(GROUPS)
        if precision == "bf16":
            entries, part, of_groups = BF16_GROUP, f"{name}-bf16", [BF16_GROUP]
            text, memory = f"{setting.text}, bf16", (("ours", FLOAT32, 1.0),)
            setting = replace(setting, text=text, least_part_of_peak=None, memory_limits=memory)
        groups: list[Results] = []
        together: Results = {}
        rounds = math.ceil(arguments.rounds * setting.share_of_rounds)
        for group in of_groups:
            candidates = list(candidates_of(group, task_fields | {"precision": precision}, arguments))
            if len(candidates) > len(ALWAYS):
                groups.append(run_workers(candidates, rounds, arguments.threads))
                check_losses(groups[-1], entries, TOLERANCES[precision])
        for results in groups:
            for candidate, samples in results.items():
                together.setdefault(candidate, []).extend(samples)
        return build_report(
            "train",
            setting.text,
            machine,
            together,
            part=part,
            comparisons=[row for results in groups for row in compare(without_product(results), "wall", "ours")],
            limits=[*speed_limits(groups, entries), *peak_limits(groups, setting), *memory_limits(together, setting)],
            left_out=left_out(entries, arguments),
        )


def candidates_of(
    group: dict[str, Entry], task_fields: dict[str, Any], arguments: "argparse.Namespace"
) -> Iterator[Candidate]:
    """Yield the members of a group that are asked for and whose needs are given."""
    for name, entry in group.items():
        is_asked_for = not arguments.only or name in arguments.only or name in ALWAYS
        if is_asked_for and not entry.is_missing(arguments):
            options = {} if name == PRODUCT else {"task_fields": task_fields}
            yield entry.candidate(name, "training_steps", options, arguments)


def check_losses(results: Results, entries: dict[str, Entry] = ENTRIES, tolerance: float = TOLERANCES["no"]) -> None:
    """Check that every candidate computed our losses, as far as the architectures are the same.

    Raises:
        ValueError: a loss is another one.
    """
    expected = results["ours"][-1].details["losses"]
    for name, samples in results.items():
        pairs = list(zip(expected, samples[-1].details.get("losses", []), strict=False))[: entries[name].equal_losses]
        if any(abs(ours - theirs) > tolerance for ours, theirs in pairs):
            ours, theirs = zip(*pairs, strict=True)
            raise ValueError(f"{name} does other work: its first losses are {theirs}, ours {ours}")


def without_product(results: Results) -> Results:
    """Return all but the matrix product, which is not a training step."""
    return {name: samples for name, samples in results.items() if name != PRODUCT}


def speed_limits(groups: list[Results], entries: dict[str, Entry] = ENTRIES) -> Iterator[dict[str, Any]]:
    """Yield the limits of the time of peers over ours, and of dropout over none."""
    for results in groups:
        for name in results:
            entry = entries[name]
            if entry.limit is not None:
                yield describe_limit(f"{name} / ours", ratios(results, "wall", name, "ours"), entry.bound, entry.limit)


def peak_limits(groups: list[Results], setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the limit of the FLOP/s of our step over those of a matrix product beside it."""
    if setting.least_part_of_peak is not None:
        flops = setting.flops / PRODUCT_FLOPS
        values = [flops * ratio for results in groups for ratio in ratios(results, "wall", PRODUCT, "ours")]
        yield describe_limit("part of torch.mm's FLOP/s", values, "at least", setting.least_part_of_peak)


def memory_limits(results: Results, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the limits of our peak memory over that of peers."""
    peaks = {name: max(sample.memory for sample in samples) for name, samples in results.items()}
    for ours, peer, limit in setting.memory_limits:
        if ours in peaks and peer in peaks:
            yield describe_limit(f"memory, {ours} / {peer}", [peaks[ours] / peaks[peer]], "at most", limit)

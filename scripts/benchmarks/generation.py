"""Generated texts timed against those of transformers, nanoGPT, litgpt, the tutorial's cached model and engines."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import peer_benchmark
from .measuring import Results, build_report, compare, describe_limit, ratios
from .peer_benchmark import GPT2_124M, TINY, PeerBenchmark, left_out
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

OURS, INT8, BARE, PAYLOAD = "ours", "ours, int8", "ours, without generate()", "ours, without the package"
READING, STOCK = "weights read once", "transformers"


@dataclass(frozen=True)
class Entry(peer_benchmark.Entry):
    """A candidate, whether its greedy ids are ours, and the module that makes it."""

    same_ids: bool = True
    module: str = "generation_runs"


ENTRIES = {
    OURS: Entry("make_ours", limit=None),
    INT8: Entry("make_ours", {"int8": True}, same_ids=False, limit=None),
    BARE: Entry("make_bare_loop", limit=None),
    PAYLOAD: Entry("make_payload", limit=None),
    READING: Entry("make_reading", same_ids=False, limit=None),
    STOCK: Entry("make_transformers"),
    "ours, before": Entry("make_ours", needs="before", limit=1.25),
    "litgpt (rotary positions)": Entry("make_litgpt", needs="peer_python", same_ids=False),
    "tutorial, cached": Entry("make_tutorial", needs="peer_python"),
    "nanoGPT (no cache)": Entry("make_nanogpt", needs="nanogpt"),
}
ENGINES = {
    OURS: Entry("make_ours", limit=None),
    STOCK: Entry("make_transformers"),
    "CTranslate2": Entry("make_ctranslate2", needs="engine_python", module="engine_runs", limit=None),
    "OpenVINO GenAI": Entry("make_openvino", needs="engine_python", module="engine_runs", limit=None),
}
PREFILLS = {
    OURS: Entry("make_prefill", {"ours": True}, limit=None),
    STOCK: Entry("make_prefill", {"ours": False}),
}
CACHED = tuple(name for name in ENTRIES if "no cache" not in name)


@dataclass(frozen=True)
class Setting:
    """Sizes of the model and the texts, the candidates, and the limits."""

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

    def task_fields(self, folder: str) -> dict[str, Any]:
        """Return the fields of `peer_models.Task`."""
        return self.model | {"rows": self.rows, "length": self.prompt, "folder": folder}

    @property
    def text_fields(self) -> dict[str, Any]:
        """The fields of `generation_runs.Text`."""
        return {key: getattr(self, key) for key in ("rows", "prompt", "new", "sampled")}


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
    "1-engines": Setting(
        "124M, 1 x 64 + 128 tokens, greedy", GPT2_124M, rows=1, entries=ENGINES, names=tuple(ENGINES)
    ),
    "8-engines": Setting(
        "124M, 8 x 64 + 128 tokens, greedy", GPT2_124M, rows=8, entries=ENGINES, names=tuple(ENGINES), stock_limit=1.15
    ),
    "prefill": Setting(
        "124M, the prompt of 64 tokens", GPT2_124M, rows=1, new=0, entries=PREFILLS, names=tuple(PREFILLS),
        stock_limit=1.0,
    ),
    "tiny": Setting("tiny, 2 x 8 + 40 tokens, greedy", TINY, rows=2, prompt=8, new=40, names=tuple(ENTRIES)),
    "tiny-engines": Setting(
        "tiny, 2 x 8 + 40 tokens, greedy", TINY, rows=2, prompt=8, new=40, entries=ENGINES, names=tuple(ENGINES)
    ),
    "tiny-sampled": Setting("tiny, 2 x 8 + 40 tokens, sampled", TINY, rows=2, prompt=8, new=40, sampled=True),
}  # fmt: skip


class Generation(PeerBenchmark):
    """Generated texts of this project and of its peers."""

    help = "generated texts, against transformers, nanoGPT, litgpt and the tutorial; engines by --settings 1-engines"
    packages = ("torch", "transformers")
    settings = SETTINGS
    default_settings = tuple(name for name in SETTINGS if "tiny" not in name and "engines" not in name)
    entries = ENTRIES | ENGINES

    def report(self, name: str, task_fields: dict[str, Any], arguments: "argparse.Namespace") -> dict[str, Any]:
        """Measure a setting."""
        setting, machine = SETTINGS[name], self.describe_machine(arguments)
        rounds = min(arguments.rounds, setting.rounds or arguments.rounds)
        results = run_workers(candidates_of(setting, task_fields, arguments), rounds, arguments.threads)
        check_work(results, setting)
        return build_report(
            "generate",
            setting.text,
            machine,
            results,
            part=name,
            comparisons=compare(without_reading(results), "wall", OURS),
            limits=list(limits_of(results, setting)),
            left_out=left_out({name: setting.entries[name] for name in setting.names}, arguments),
        )


def candidates_of(
    setting: Setting, task_fields: dict[str, Any], arguments: "argparse.Namespace"
) -> Iterator[Candidate]:
    """Yield the candidates of a setting that are asked for and whose needs are given."""
    options = {"task_fields": task_fields, "text_fields": setting.text_fields}
    for name in setting.names:
        entry = setting.entries[name]
        is_asked_for = not arguments.only or name in (OURS, *arguments.only)
        is_greedy_alone = name == BARE  # the loop without generate()
        if is_asked_for and not entry.is_missing(arguments) and not (is_greedy_alone and setting.sampled):
            yield entry.candidate(name, entry.module, options, arguments)


def check_work(results: Results, setting: Setting) -> None:
    """Check that every candidate added as many tokens as ours, and greedily the same where the model is the same.

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
    """Return all but the reading of memory, which generates nothing."""
    return {name: samples for name, samples in results.items() if name != READING}


def limits_of(results: Results, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the limits of the time of peers over ours, and of the part of the memory's speed that we reach."""
    for name in results:
        limit = setting.stock_limit if name == STOCK else setting.entries[name].limit
        if limit is not None:
            yield describe_limit(f"{name} / ours", ratios(results, "wall", name, OURS), "at least", limit)
    if STOCK in results and INT8 in results:
        values = ratios(results, "wall", STOCK, INT8)
        yield describe_limit(f"{STOCK} / {INT8}", values, "at least", setting.int8_limit)
    if READING in results and setting.rows == 1:
        # A text reads all weights once for each token. The limit is the most that a trial reached.
        reads = results[READING][0].details["reads"]
        values = [setting.new / reads * ratio for ratio in ratios(results, "wall", READING, OURS)]
        yield describe_limit("part of the memory's bandwidth", values, "at least", 0.76)

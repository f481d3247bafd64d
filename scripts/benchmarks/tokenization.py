"""Text to tokens: our preparation against tiktoken and transformers' fast tokenizer, on the same documents.

The documents are in memory before the clock starts, but for the whole preparation, which reads and hashes its files.
After the clock has stopped, every candidate hashes its ids, which must all be the same.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.runtime.cli import number

from .benchmark import Benchmark
from .growth import documents
from .measuring import Results, build_report, compare, describe_limit, ratios
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

    import numpy as np

SHARD_TOKENS = 1 << 22
Details = Callable[[], dict[str, Any]]

# Figure, numerator, denominator and limit ("at least"); N stands for the number of threads.
LIMITS = (
    ("cpu", "tiktoken, 1 thread", "ours, 1 thread", 1),
    ("wall", "tiktoken, N threads", "ours, N threads", 1),
    ("wall", "transformers' fast tokenizer, N threads", "ours, N threads", 4),
)


def read_documents(path: str) -> list[str]:
    """Return the texts of a file of JSON lines."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def describe_ids(documents: "Iterable[np.ndarray | list[int]]") -> dict[str, Any]:
    """Return number and hash of all ids, one document after the other."""
    import numpy as np

    ids = np.concatenate([np.asarray(one, np.uint16) for one in documents])
    return {"tokens": len(ids), "ids": hashlib.sha256(ids.tobytes()).hexdigest()[:12]}


def describe_shards(folder: Path) -> dict[str, Any]:
    """Return the same for the shards in a folder, without the tokens that separate documents."""
    from hf_gpt_scratch.data.token_shards import Shard
    from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID

    shards = map(Shard, sorted(folder.glob("*.safetensors")))
    parts = [shard.read(0, len(shard)) for shard in shards]
    shutil.rmtree(folder)
    return describe_ids(part[part != END_OF_TEXT_ID] for part in parts)


def make_ours(path: str, threads: int) -> Callable[[], Details]:
    """Write documents in memory to shards on the disk, as the preparation does."""
    from hf_gpt_scratch.data.pieces import Piece, cut_string
    from hf_gpt_scratch.data.preparation.shard_writer import ShardWriter
    from hf_gpt_scratch.data.preparation.tokenizing import encode_in_order

    texts = read_documents(path)

    def work() -> Details:
        folder = Path(tempfile.mkdtemp(dir=Path(path).parent))
        writer = ShardWriter(folder, "train", SHARD_TOKENS)
        pieces = (Piece(part, is_last, 0) for text in texts for part, is_last in cut_string(text))
        for place, piece, tokens in encode_in_order(enumerate(pieces), threads):
            if tokens is not None:  # a piece without content has none
                for _ in writer.add(place, tokens, piece.ends_document):
                    pass
        writer.write((0, 0))
        return lambda: describe_shards(folder)

    return work


def make_preparation(path: str, threads: int) -> Callable[[], Details]:
    """Run scripts/prepare_data.py without its start: a file of JSON lines read, hashed, tokenized, indexed."""
    from hf_gpt_scratch.data.document_sources import file_sources
    from hf_gpt_scratch.data.preparation.prepare import Choices, prepare

    def work() -> Details:
        folder = Path(tempfile.mkdtemp(dir=Path(path).parent))
        sources = file_sources([path], None, threads, lambda num_bytes: None)
        prepare(folder, sources, Choices(shard_tokens=SHARD_TOKENS), threads, lambda line: None)
        return lambda: describe_shards(folder)

    return work


def make_tiktoken(path: str, threads: int, writes: bool = False) -> Callable[[], Details]:
    """Encode with tiktoken's own batches, and where `writes` put the ids as uint16 into a file."""
    import numpy as np

    from hf_gpt_scratch.data.tokenizer import load_encoding

    texts, encoding = read_documents(path), load_encoding()

    def work() -> Details:
        ids = encoding.encode_ordinary_batch(texts, num_threads=threads)
        if writes:
            with tempfile.TemporaryFile(dir=Path(path).parent) as file:
                for one in ids:
                    file.write(np.array(one, np.uint16).data)
        return lambda: describe_ids(ids)

    return work


def make_transformers(path: str, threads: int) -> Callable[[], Details]:
    """Encode with transformers' fast tokenizer for GPT-2, a batch of all documents."""
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    from hf_gpt_scratch.data.tokenizer import build_tokenizer

    texts, tokenizer = read_documents(path), build_tokenizer()

    def work() -> Details:
        ids = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        return lambda: describe_ids(ids)

    return work


def candidates(path: Path, threads: int) -> list[Candidate]:
    """Return all candidates, with one thread and with `threads`."""

    def entry(name: str, make: str, threads: int, **options: Any) -> Candidate:
        ending = f", {threads} thread{'s' if threads > 1 else ''}"
        return Candidate(name + ending, f"{__name__}:{make}", {"path": str(path), "threads": threads} | options)

    return [
        entry(name, make, number, **options)
        for number in sorted({1, threads})
        for name, make, options in (
            ("ours", "make_ours", {}),
            ("whole preparation", "make_preparation", {}),
            ("tiktoken", "make_tiktoken", {}),
            ("tiktoken, uint16 file", "make_tiktoken", {"writes": True}),
        )
    ] + [entry("transformers' fast tokenizer", "make_transformers", threads)]


def refuse_other_work(results: Results) -> None:
    """Raise ValueError if a candidate made other ids than the others."""
    ids = {name: samples[-1].details["ids"] for name, samples in results.items()}
    if len(set(ids.values())) > 1:
        raise ValueError(f"the ids are not the same: {ids}")


def describe_limits(results: Results, threads: int) -> list[dict[str, Any]]:
    """Return the limits."""
    many = f"{threads} thread{'s' if threads > 1 else ''}"
    limits = []
    for figure, numerator, denominator, limit in LIMITS:
        numerator, denominator = (name.replace("N threads", many) for name in (numerator, denominator))
        values = ratios(results, figure, numerator, denominator)
        limits.append(describe_limit(f"{figure} time, {numerator} / {denominator}", values, "at least", limit))
    return limits


class Tokenization(Benchmark):
    """Tokenization of a corpus that is made for it."""

    help = "text to uint16 shards, against tiktoken and transformers' fast tokenizer"
    packages = ("tiktoken", "tokenizers", "transformers", "numpy")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add `--megabytes`."""
        parser.add_argument(
            "--megabytes", type=number(float, 1e-6), default=20, help="size of the corpus that is made (default: 20)"
        )

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Run all candidates in turn."""
        machine = self.describe_machine(arguments)
        with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as folder:
            path = Path(folder) / "corpus.jsonl"
            with path.open("w", encoding="utf-8") as file:
                texts = documents(int(arguments.megabytes * 1e6))
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
            results = run_workers(candidates(path, arguments.threads), arguments.rounds, arguments.threads)
        refuse_other_work(results)
        ours = next(name for name in reversed(results) if name.startswith("ours"))
        yield build_report(
            "data",
            f"{arguments.megabytes:g} MB of Python's own sources",
            machine,
            results,
            comparisons=compare(results, "wall", ours),
            limits=describe_limits(results, arguments.threads),
        )

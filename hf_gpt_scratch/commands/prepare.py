"""Tokenize a corpus of any size: hf-gpt-scratch prepare --source my_texts/ --output prepared."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_gpt_scratch.commands.options import add_text_column
from hf_gpt_scratch.data.document_sources import (
    Source,
    dataset_source,
    file_sources,
    find_files,
    hashes_of_equal_size,
    refuse_unused_column,
    warn_of_copies,
    warn_of_shared,
)
from hf_gpt_scratch.data.documents import DatasetName
from hf_gpt_scratch.data.preparation.prepare import Choices, prepare
from hf_gpt_scratch.data.token_folder import read_index, verify_folder
from hf_gpt_scratch.data.vocabulary import OWN
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.runtime.cli import OneLineParser, number, refuse_unused, say


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(prog=prog, description="Turn texts into token shards that train --train_data reads.")
    source = parser.add_argument_group("documents")
    source.add_argument(
        "--source", nargs="+", metavar="PATH",
        help="files .txt .md .jsonl .ndjson .parquet .ds, text and JSON lines also .gz or .zst, or folders of them",
    )  # fmt: skip
    source.add_argument(
        "--dataset", metavar="NAME", help="instead: a Hugging Face dataset, streamed; Hub or local path"
    )
    source.add_argument("--dataset_config", help="configuration of that dataset, where it has several")
    source.add_argument("--dataset_split", help="its split to read (default: train)")
    source.add_argument("--dataset_revision", help="its branch or commit (default: the newest commit)")
    add_text_column(source)
    source.add_argument(
        "--bad_rows",
        choices=("stop", "skip"),
        help="rows that are not JSON or have no text: stop at the first (default), or count and skip them",
    )
    validation = parser.add_argument_group("validation")
    validation.add_argument("--validation_source", nargs="+", metavar="PATH", help="files and folders to validate on")
    validation.add_argument(
        "--validation_fraction", type=number(float, 0, 1), help="instead: share of the documents to validate on"
    )
    result = parser.add_argument_group("tokens")
    result.add_argument("--output", type=Path, help="folder to make, or to finish after an interruption")
    result.add_argument(
        "--vocabulary",
        metavar="NAME",
        help="gpt2 (default), bytes, or a folder made by hf-gpt-scratch train-tokenizer",
    )
    result.add_argument(
        "--shard_tokens", type=number(int, 1, 2**40), help="tokens of a shard (default: 67108864, 128 MiB)"
    )
    result.add_argument("--num_workers", type=number(int, 1, 2**16), help="threads that tokenize (default: all cores)")
    result.add_argument(
        "--verify", type=Path, metavar="FOLDER", help="only compare every byte of a folder with its index"
    )
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Prepare or verify a folder, and print what it holds."""
    arguments = parse_arguments(words, prog)
    index = prepare_or_verify(arguments)
    print("\n".join(describe(index, arguments.verify or arguments.output, arguments.vocabulary)))


def prepare_or_verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for, and return the index of the folder."""
    num_workers = arguments.num_workers or available_cores()
    if arguments.verify:
        options = ["--source", "--dataset", "--dataset_config", "--dataset_split", "--dataset_revision", "--output"]
        options += ["--text_column", "--validation_source", "--validation_fraction", "--shard_tokens", "--bad_rows"]
        options += ["--vocabulary"]
        refuse_unused(arguments, options, "with --verify")
        if broken := verify_folder(arguments.verify, num_workers):
            raise ValueError(f"{len(broken)} of the shards are corrupt, the first: {broken[0]}; prepare them again")
        return read_index(arguments.verify)
    refuse_contradictions(arguments)
    vocabulary = load_vocabulary(arguments.vocabulary or "gpt2")
    given = {item.name: getattr(arguments, item.name) for item in fields(Choices)}
    choices = Choices(**{name: value for name, value in given.items() if value is not None})
    sources = find_sources(arguments, choices.text_column, num_workers)
    return prepare(arguments.output, sources, choices, num_workers, say, vocabulary)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Raise for options that do not go together, all in one line."""
    if arguments.source is not None:
        options = ["--dataset_config", "--dataset_split", "--dataset_revision"]
        refuse_unused(arguments, options, "with --source")
    problems = []
    if (arguments.source is None) == (arguments.dataset is None):
        problems.append("give either --source with files or folders, or --dataset")
    if arguments.output is None:
        problems.append("name the folder to make with --output")
    if arguments.validation_fraction and arguments.validation_source:
        problems.append("give --validation_fraction or --validation_source, not both")
    if problems:
        raise ValueError("; ".join(problems))


def find_sources(arguments: argparse.Namespace, text_column: str, num_workers: int) -> list[Source]:
    """Find the sources that the options name, and hash their files."""
    files, validation_files = (
        find_files(paths or [], say=say) for paths in (arguments.source, arguments.validation_source)
    )
    if arguments.dataset is None:
        refuse_unused_column([*files, *validation_files], text_column)
    warn_of_copies(files, say)
    warn_of_shared(hashes_of_equal_size(files, validation_files), validation_files, say)
    with tqdm(unit="B", unit_scale=True, disable=None, desc="hashing the sources", leave=False) as bar:
        validation = file_sources(validation_files, "validation", num_workers, bar.update)
        # Without a fraction all documents are for training.
        if arguments.source is not None:
            return [*file_sources(files, None, num_workers, bar.update), *validation]
    names = arguments.dataset, arguments.dataset_config, arguments.dataset_split or "train", arguments.dataset_revision
    return [dataset_source(DatasetName(*names)), *validation]


def describe(index: dict[str, Any], folder: Path, vocabulary: str | None) -> list[str]:
    """Describe a folder in a few lines; the vocabulary is the one that was given."""
    lines = [
        f"{split}: {facts['num_tokens']:,} tokens, {facts['num_documents']:,} documents, {len(facts['shards'])} shards"
        for split, facts in index["splits"].items()
    ]
    skipped = index["skipped"]
    if skipped["empty_documents"]:
        lines.append(f"left out: {skipped['empty_documents']:,} empty documents")
    if skipped["bad_rows"]:
        lines.append(f"left out: {skipped['bad_rows']:,} bad rows, the first: {skipped['first_bad_row']}")
    name = index["vocabulary"]["name"]
    option = "" if name == "gpt2" else f" --vocabulary {vocabulary or ('FOLDER' if name == OWN else name)}"
    return [*lines, f"train on it: hf-gpt-scratch train --train_data {folder}{option}"]

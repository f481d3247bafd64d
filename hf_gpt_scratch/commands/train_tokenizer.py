"""Make a vocabulary: hf-gpt-scratch train-tokenizer --source my_texts/ --vocab_size 16000 --output mine."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from hf_gpt_scratch.commands.options import add_text_column
from hf_gpt_scratch.data.document_sources import find_files, refuse_unused_column, warn_of_copies
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary import Vocabulary
from hf_gpt_scratch.data.vocabulary_training import (
    MIN_SAMPLE_BYTES,
    MIN_VOCAB_SIZE,
    SAMPLE_BYTES,
    TextSample,
    bytes_per_token,
    train_vocabulary,
)
from hf_gpt_scratch.runtime.cli import OneLineParser, number, say
from hf_gpt_scratch.runtime.files import atomic_folder


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(
        prog=prog, description="Train a byte-level BPE on texts, for the --vocabulary of train and prepare."
    )
    parser.add_argument(
        "--source", nargs="+", required=True, metavar="PATH",
        help="files .txt .md .jsonl .ndjson .parquet, text and JSON lines also .gz or .zst, or folders of them",
    )  # fmt: skip
    parser.add_argument(
        "--vocab_size", type=number(int, MIN_VOCAB_SIZE, 2**31), required=True,
        help="number of tokens: the 256 bytes, <|endoftext|>, and one for each merge",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    add_text_column(parser)
    parser.add_argument(
        "--sample_bytes",
        type=number(int, MIN_SAMPLE_BYTES, 2**63),
        default=SAMPLE_BYTES,
        help=f"bytes of text to train on at most, spread evenly over the sources (default: {SAMPLE_BYTES}, 256 MiB)",
    )
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Train a vocabulary, write its folder, and print how it fits the texts."""
    arguments = parse_arguments(words, prog)
    text_column = arguments.text_column or "text"
    with atomic_folder(arguments.output) as folder:
        files = find_files(arguments.source, ("text", "JSON lines", "parquet"), say=say)
        refuse_unused_column(files, text_column)
        warn_of_copies(files, say)
        texts = TextSample(files, text_column, arguments.sample_bytes)
        vocabulary = train_vocabulary(texts, arguments.vocab_size)
        write_tokenizer(folder, vocabulary)
    print("\n".join(describe(vocabulary, texts, arguments)))


def describe(vocabulary: Vocabulary, texts: TextSample, arguments: argparse.Namespace) -> list[str]:
    """Describe a vocabulary in a few lines."""
    lines = []
    if texts.skipped.count:
        lines.append(f"left out: {texts.skipped.count:,} bad rows, the first: {texts.skipped.first}")
    if vocabulary.size < arguments.vocab_size:
        lines.append(
            f"the texts give {vocabulary.size:,} tokens and not --vocab_size {arguments.vocab_size:,}: no other pair "
            "stands in them twice"
        )
    column = ["--text_column", arguments.text_column] if arguments.text_column else []
    ours, gpt2 = (bytes_per_token(texts.measured, known) for known in (vocabulary, "gpt2"))
    num_bytes = sum(len(text.encode("utf-8")) for text in texts.measured)
    return [
        *lines,
        f"{vocabulary.size:,} tokens: {ours:.2f} bytes a token, GPT-2 has {gpt2:.2f}, on {num_bytes:,} bytes of text",
        "train with it: hf-gpt-scratch train "
        + shlex.join(["--train_file", *arguments.source, *column, "--vocabulary", str(arguments.output)]),
    ]

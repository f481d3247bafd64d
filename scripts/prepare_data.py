"""Tokenise a corpus of any size: python scripts/prepare_data.py --source my_texts/ --output prepared."""

import argparse
from pathlib import Path

from hf_gpt_scratch.runtime.cli import OneLineParser, number, run, say


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description="Turn texts into token shards that scripts/train.py --train_data reads.")
    parser.add_argument(
        "--source", nargs="+", metavar="PATH",
        help="files .txt .md .jsonl .ndjson .parquet .ds, text and JSON lines also .gz or .zst, or folders of them",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", metavar="NAME", help="instead: a Hugging Face dataset, streamed; Hub or local path"
    )
    parser.add_argument("--dataset_config", help="configuration of that dataset, where it has several")
    parser.add_argument("--dataset_split", help="its split to read (default: train)")
    parser.add_argument("--dataset_revision", help="its branch or commit (default: the newest commit)")
    parser.add_argument("--output", type=Path, help="folder to make, or to finish after an interruption")
    parser.add_argument("--text_column", default="text", help="key or column that holds the text (default: text)")
    parser.add_argument("--validation_source", nargs="+", metavar="PATH", help="files and folders to validate on")
    parser.add_argument(
        "--validation_fraction", type=number(float, 0, 1), help="instead: share of the documents to validate on"
    )
    parser.add_argument(
        "--shard_tokens",
        type=number(int, 1, 2**40),
        default=1 << 26,
        help="tokens of a shard (default: 67108864, 128 MiB)",
    )
    parser.add_argument("--num_workers", type=number(int, 1, 2**16), help="threads that tokenise (default: all cores)")
    parser.add_argument(
        "--bad_rows",
        choices=("stop", "skip"),
        default="stop",
        help="rows that are not JSON or have no text: stop at the first (default), or count and skip them",
    )
    parser.add_argument(
        "--verify", type=Path, metavar="FOLDER", help="only compare every byte of a folder with its index"
    )
    return parser.parse_args()


def main() -> None:
    from hf_gpt_scratch.data.preparation.command import describe, prepare_or_verify

    arguments = parse_arguments()
    index = prepare_or_verify(arguments, say)
    print("\n".join(describe(index, arguments.verify or arguments.output)))


if __name__ == "__main__":
    run(main, memory_advice="turn down --num_workers or --shard_tokens")

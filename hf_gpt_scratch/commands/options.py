"""Options that several commands have."""

import argparse
import re

from hf_gpt_scratch.runtime.cli import filled, folder_or_repository, number


def add_model_options(
    parser: argparse.ArgumentParser, otherwise: str = "", default: str | None = None
) -> argparse._ArgumentGroup:
    """Add `--model`, which is required unless `otherwise` says what is taken without it.

    Returns:
        Its group, for more options on the model.
    """
    group = parser.add_argument_group("model")
    suffix = f" (default: {otherwise})" if otherwise else ""
    group.add_argument(
        "--model",
        type=folder_or_repository,
        required=not otherwise,
        default=default,
        help=f"folder or Hub repository{suffix}",
    )
    return group


def add_top_k(parser: argparse._ActionsContainer) -> None:
    """Add `--top_k`."""
    parser.add_argument("--top_k", type=number(int, 0), help="keep so many likeliest tokens (default: all)")


def add_text_column(parser: argparse._ActionsContainer) -> None:
    """Add `--text_column`."""
    parser.add_argument("--text_column", type=filled, help="key or column that holds the text (default: text)")


def num_bytes(text: str) -> int:
    """Return the bytes of "5GB", "200MB", "10KB" (powers of ten, as in transformers), "5GiB" (of two) or "5000"."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:([KMG])(i?)B)?\s*", text, re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write it like 5GB or 200MB")
    return int(match[1]) * (1024 if match[3] else 1000) ** " KMG".index((match[2] or " ").upper())

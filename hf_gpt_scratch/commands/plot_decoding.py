"""Draw next-token probabilities at several temperatures: hf-gpt-scratch plot decoding."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from hf_gpt_scratch.commands.options import add_model_options, add_top_k
from hf_gpt_scratch.runtime.cli import OneLineParser, filled, number, quiet_libraries, refuse_unused


def picture_stem(value: str) -> Path:
    """Return the path without .png or .pdf; both are drawn."""
    path = Path(filled(value))
    if value.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"{value} is a folder: name the picture in it, such as {path / 'decoding'}")
    return path.with_suffix("") if path.suffix in (".png", ".pdf") else path


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(
        prog=prog, description="Draw a bar for each token and temperature: of the tutorial's nine words or of a model."
    )
    add_model_options(parser, "the tutorial's nine words")
    parser.add_argument("--prompt", type=str, help="text before the token (default: start from <|endoftext|>)")
    parser.add_argument(
        "--temperature", type=number(float, 0), nargs="+", default=[1.0, 0.1, 5.0], help="default: 1 0.1 5"
    )
    add_top_k(parser)
    parser.add_argument("--num_tokens", type=number(int, 1), help="likeliest tokens to draw (default: 10)")
    parser.add_argument("--output", type=picture_stem, default=Path("decoding"), help="PNG and PDF without ending")
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Print the probabilities and draw them."""
    arguments = parse_arguments(words, prog)
    quiet_libraries()

    from hf_gpt_scratch.generation.decoding import likeliest_tokens, next_token_probabilities, tutorial_tokens
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
    from hf_gpt_scratch.plots import probability_figure, save_figure

    if arguments.model is None:
        refuse_unused(arguments, ["--prompt", "--num_tokens"], "without --model")
        tokens, token_ids, logits = tutorial_tokens()
    else:
        model, tokenizer = load_model_and_tokenizer(arguments.model)
        tokens, token_ids, logits = likeliest_tokens(
            model, tokenizer, arguments.prompt or "", arguments.num_tokens or 10
        )
    rows = [next_token_probabilities(logits, value, arguments.top_k)[token_ids] for value in arguments.temperature]
    for token, *probabilities in zip(tokens, *(row.tolist() for row in rows), strict=True):
        print(f"{token:>14}", *(f"{probability:8.4f}" for probability in probabilities))
    names = [f"temperature {value:g}" for value in arguments.temperature]
    for path in save_figure(probability_figure(rows, names, tokens), arguments.output):
        print(f"drawn to {path}")

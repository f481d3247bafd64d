"""Draw next-token probabilities at several temperatures: python scripts/plot_decoding.py."""

import argparse
import os
from pathlib import Path

from hf_gpt_scratch.runtime.cli import (
    OneLineParser,
    filled,
    folder_or_repository,
    number,
    quiet_libraries,
    refuse_unused,
    run,
)


def picture_stem(value: str) -> Path:
    """Return the path without .png or .pdf; both are drawn."""
    path = Path(filled(value))
    if value.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"{value} is a folder: name the picture in it, such as {path / 'decoding'}")
    return path.with_suffix("") if path.suffix in (".png", ".pdf") else path


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(
        description="Draw a bar for each token and temperature: of the tutorial's nine words or of a model."
    )
    parser.add_argument(
        "--model", type=folder_or_repository, help="folder or Hub repository (default: the tutorial's nine words)"
    )
    parser.add_argument("--prompt", type=str, help="text before the token (default: start from <|endoftext|>)")
    parser.add_argument(
        "--temperature", type=number(float, 0), nargs="+", default=[1.0, 0.1, 5.0], help="default: 1 0.1 5"
    )
    parser.add_argument("--top-k", type=number(int, 0), help="keep so many likeliest tokens (default: all)")
    parser.add_argument("--num-tokens", type=number(int, 1), help="likeliest tokens to draw (default: 10)")
    parser.add_argument("--output", type=picture_stem, default=Path("decoding"), help="PNG and PDF without ending")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()

    from hf_gpt_scratch.generation.decoding import likeliest_tokens, next_token_probabilities, tutorial_tokens
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
    from hf_gpt_scratch.plots import probability_figure, save_figure

    if arguments.model is None:
        refuse_unused(arguments, ["--prompt", "--num-tokens"], "without --model")
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


if __name__ == "__main__":
    run(main)

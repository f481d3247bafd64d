"""Score a text: hf-gpt-scratch evaluate --model FOLDER_OR_REPO --file TEXT."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_gpt_scratch.commands.options import add_model_options, add_text_column
from hf_gpt_scratch.runtime.cli import OneLineParser, number, quiet_libraries, say


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(prog=prog, description="Print loss, perplexity and bits per byte of a model on a text.")
    model = add_model_options(parser)
    model.add_argument("--int8", action="store_true", help="score the int8 weights that generate --int8 uses")
    text = parser.add_argument_group("text")
    text.add_argument(
        "--file", required=True, type=Path, help="UTF-8 text, JSON lines or parquet; a folder: all below it"
    )
    add_text_column(text)
    text.add_argument(
        "--block_size", type=number(int, 1), help="tokens of a window; default: the context of the model"
    )
    text.add_argument(
        "--batch_size", type=number(int, 1), help="windows scored at once; default: as many as have 4,096 tokens"
    )
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Print loss, perplexity and bits per byte."""
    arguments = parse_arguments(words, prog)
    quiet_libraries()

    from tqdm import tqdm

    from hf_gpt_scratch.data.windows import read_blocks
    from hf_gpt_scratch.evaluation import evaluate_text
    from hf_gpt_scratch.generation.quantization import quantize_int8
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

    num_bytes, blocks = read_blocks([arguments.file], arguments.text_column or "text", say)
    model, tokenizer = load_model_and_tokenizer(arguments.model)
    if arguments.int8:
        model = quantize_int8(model)
    # On a terminal alone, and for what takes more than two seconds.
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc="scoring", delay=2, leave=False, disable=None) as bar:

        def show_progress(num_scored: int) -> None:
            bar.update(num_scored - bar.n)

        result = evaluate_text(model, blocks, tokenizer, arguments.block_size, arguments.batch_size, show_progress)
    print(f"tokens {result.num_tokens}, bytes {result.num_bytes}")
    print(f"loss {result.loss:.6f} nats per token")
    print(f"perplexity {result.perplexity:.4f}")
    print(f"bits per byte {result.bits_per_byte:.6f}")

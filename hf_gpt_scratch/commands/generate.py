"""Continue prompts: hf-gpt-scratch generate --model FOLDER_OR_REPO --prompt TEXT."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hf_gpt_scratch.commands.options import add_model_options, add_top_k
from hf_gpt_scratch.runtime.cli import OneLineParser, number, quiet_libraries, refuse_unused, writes_unicode


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(prog=prog, description="Continue prompts; a single one is streamed.")
    model = add_model_options(parser)
    model.add_argument("--int8", action="store_true", help="int8 weights, on a CPU: faster, nearly the same text")
    prompts = parser.add_argument_group("prompts").add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", type=str, action="append", help="text to continue; empty: start from <|endoftext|>; repeat"
    )
    prompts.add_argument("--prompt_file", type=Path, help="UTF-8 file with a prompt in each line that is not empty")
    prompts.add_argument("--interactive", action="store_true", help="type prompts, change temperature and top_k")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--max_new_tokens", type=number(int, 1), default=25, help="tokens to add (default: 25)")
    decoding.add_argument("--temperature", type=number(float, 0), default=0.0, help="0 is greedy (default: 0)")
    add_top_k(decoding)
    decoding.add_argument(
        "--seed", type=number(int, 0, 2**63), help="makes sampling repeatable; further samples count on from it"
    )
    decoding.add_argument(
        "--past_context", choices=["exact", "rolling"], default="exact",
        help="past the context, condition on the last window (exact, default), or roll on from half of it (faster)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument("--num_samples", type=number(int, 1), help="samples of each prompt (default: 1)")
    output.add_argument("--json", action="store_true", help="print a JSON object for each sample")
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Print the texts, or talk with the user at the keyboard."""
    arguments = parse_arguments(words, prog)
    quiet_libraries()

    from transformers import TextStreamer

    from hf_gpt_scratch.data.documents import read_text
    from hf_gpt_scratch.generation.decoding import Decoding, generate_samples
    from hf_gpt_scratch.generation.interactive import run_session
    from hf_gpt_scratch.generation.quantization import quantize_int8
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

    if arguments.interactive:
        refuse_unused(arguments, ["--num_samples", "--json"], "with --interactive")
    num_samples = arguments.num_samples or 1
    decoding = Decoding(
        arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.seed, arguments.past_context
    )
    decoding.check()
    prompts = arguments.prompt
    if arguments.prompt_file is not None:
        prompts = [line for line in read_text(arguments.prompt_file).split("\n") if line.strip()]
    model, tokenizer = load_model_and_tokenizer(arguments.model)
    if arguments.int8:
        model = quantize_int8(model)
    if arguments.interactive:
        return run_session(model, tokenizer, decoding)
    is_streamed = len(prompts) * num_samples == 1 and not arguments.json
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if is_streamed else None
    groups = generate_samples(model, tokenizer, prompts, decoding, num_samples=num_samples, streamer=streamer)
    for sample in (sample for group in groups for sample in group if not is_streamed):
        print(json.dumps(asdict(sample), ensure_ascii=not writes_unicode()) if arguments.json else f"{sample.text}\n")
    return None

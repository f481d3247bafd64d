"""Try a model in the browser: hf-gpt-scratch demo --model FOLDER_OR_REPO."""

import argparse
import os
from collections.abc import Sequence

from hf_gpt_scratch.commands.options import add_model_options
from hf_gpt_scratch.runtime.cli import OneLineParser, number, quiet_libraries


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(prog=prog, description="Serve a page with a model's texts and next-token probabilities.")
    default = os.environ.get("HF_GPT_SCRATCH_MODEL", "model")
    add_model_options(parser, "$HF_GPT_SCRATCH_MODEL, or else the folder model", default)
    parser.add_argument("--host", help="address to listen at (default: this machine only, 127.0.0.1)")
    parser.add_argument(
        "--port", type=number(int, 0, 2**16), help="port to listen at (default: the first free one from 7860 on)"
    )
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Serve the page until the process is ended."""
    arguments = parse_arguments(words, prog)
    quiet_libraries()

    try:
        from hf_gpt_scratch.generation.demo import build_demo
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the demo needs gradio: pip install gradio") from None
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

    page = build_demo(*load_model_and_tokenizer(arguments.model), arguments.model)
    # No history of runs, which would list each move of a slider; no second server to draw the page beforehand.
    page.launch(server_name=arguments.host, server_port=arguments.port, run_history=False, ssr_mode=False)

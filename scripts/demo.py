"""Try a model in the browser: python scripts/demo.py --model FOLDER_OR_REPO."""

import argparse
import os

from hf_gpt_scratch.runtime.cli import OneLineParser, folder_or_repository, number, quiet_libraries, run


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description="Serve a page with a model's texts and next-token probabilities.")
    parser.add_argument(
        "--model", type=folder_or_repository, default=os.environ.get("HF_GPT_SCRATCH_MODEL", "model"),
        help="folder or Hub repository (default: $HF_GPT_SCRATCH_MODEL, or else the folder model)",
    )  # fmt: skip
    parser.add_argument("--host", help="address to listen at (default: this machine only, 127.0.0.1)")
    parser.add_argument(
        "--port", type=number(int, 0, 2**16), help="port to listen at (default: the first free one from 7860 on)"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()

    try:
        from hf_gpt_scratch.generation.demo import build_demo
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the demo needs gradio: pip install 'hf_gpt_scratch[demo]'") from None
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

    page = build_demo(*load_model_and_tokenizer(arguments.model), arguments.model)
    # No history of runs, which would list each move of a slider; no second server to draw the page beforehand.
    page.launch(server_name=arguments.host, server_port=arguments.port, run_history=False, ssr_mode=False)


if __name__ == "__main__":
    run(main)

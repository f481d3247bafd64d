"""Continue a prompt: python scripts/generate.py --model FOLDER_OR_REPO --prompt TEXT."""

import argparse

from hf_gpt_scratch.cli import quiet_libraries, run


def main() -> None:
    parser = argparse.ArgumentParser(description="Stream the continuation of a prompt.")
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--prompt", required=True, help="text to continue; empty: start from <|endoftext|>")
    parser.add_argument("--max-new-tokens", type=int, default=25, help="tokens to add (default: 25)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--top-k", type=int, help="choose among so many likeliest tokens (default: all)")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    arguments = vars(parser.parse_args())
    quiet_libraries()

    from hf_gpt_scratch.decoding import generate_text
    from hf_gpt_scratch.loading import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(arguments.pop("model"))
    generate_text(model, tokenizer, **arguments, stream=True)


if __name__ == "__main__":
    run(main)

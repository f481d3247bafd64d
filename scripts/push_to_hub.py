"""Push a model folder to the Hugging Face Hub: python scripts/push_to_hub.py FOLDER USER/NAME."""

import argparse
import os
from pathlib import Path


# Pushing needs neither torch nor transformers, whose import takes seconds.
os.environ.setdefault("HF_GPT_SCRATCH_REGISTER", "0")

from hf_gpt_scratch.cli import OneLineParser, number, run  # noqa: E402
from hf_gpt_scratch.hub import Order, describe_push, push_folder  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(
        description="Push a model folder in one commit. Afterwards the branch holds these files and no others."
    )
    parser.add_argument("folder", type=Path, help="what training wrote into model/, or the converter's --output")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make it a private repository")
    parser.add_argument("--revision", default="main", metavar="B", help="branch; made if missing (default: main)")
    parser.add_argument("--tag", help="name for the commit, such as v0.1")
    parser.add_argument(
        "--timeout",
        type=number(float, 1),
        default=Order.timeout,
        help="give up after so many seconds (default: six hours)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    folder, repo_id = arguments.folder, arguments.repo_id
    pushed = push_folder(
        folder,
        repo_id,
        revision=arguments.revision,
        private=arguments.private,
        tag=arguments.tag,
        timeout=arguments.timeout,
    )
    print("\n".join(describe_push(pushed, folder, repo_id)))


if __name__ == "__main__":
    run(main)

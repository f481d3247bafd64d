"""Push a model folder to the Hugging Face Hub: hf-gpt-scratch push FOLDER USER/NAME.

Or bring the code of an older one up to date: hf-gpt-scratch push --update_code REPO_OR_FOLDER.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_gpt_scratch.hub.push import PushRequest, describe_push, push_folder, update_code
from hf_gpt_scratch.runtime.cli import OneLineParser, number


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(
        prog=prog,
        description="Push a model folder in one commit. Afterwards the branch holds these files and no others.",
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="what training wrote into model/, or the converter's --output"
    )
    parser.add_argument("repo_id", metavar="USER/NAME", nargs="?", help="repository; made if it does not exist")
    parser.add_argument(
        "--update_code",
        metavar="REPO_OR_FOLDER",
        help="only replace the code files there, and what config.json says of them, by those of this package",
    )
    parser.add_argument("--private", action="store_true", help="make it a private repository")
    parser.add_argument("--revision", default="main", metavar="B", help="branch; made if missing (default: main)")
    parser.add_argument("--tag", help="name for the commit, such as v0.1")
    parser.add_argument(
        "--timeout",
        type=number(float, 1),
        default=PushRequest.timeout,
        help="give up after so many seconds (default: six hours)",
    )
    arguments = parser.parse_args(words)
    if arguments.update_code is None and arguments.repo_id is None:
        parser.error("name the folder and USER/NAME")
    if arguments.update_code is not None and (arguments.folder or arguments.private or arguments.tag):
        parser.error("--update_code goes with --revision and --timeout alone")
    return arguments


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Push, and print the commit and the line that loads it."""
    arguments = parse_arguments(words, prog)
    if arguments.update_code is not None:
        print(update_code(arguments.update_code, arguments.revision, arguments.timeout))
        return
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

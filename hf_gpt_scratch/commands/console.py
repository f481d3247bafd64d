"""The command `hf-gpt-scratch`: find the subcommand, import its module alone and run it."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from hf_gpt_scratch import __version__
from hf_gpt_scratch.runtime.cli import OneLineParser, run
from hf_gpt_scratch.runtime.out_of_memory import ADVICE


PROGRAM = "hf-gpt-scratch"


class Command(NamedTuple):
    """A module of this folder; its `main(words, prog)` parses the words after the subcommand and does the work."""

    module: str
    help: str
    shows_result: bool = False  # this and the next: see `run`
    memory_advice: str = ADVICE


COMMANDS = {
    "train": Command("train", "pretrain or finetune a model on text"),
    "generate": Command("generate", "continue prompts", shows_result=True),
    "evaluate": Command("evaluate", "score a text: loss, perplexity, bits per byte", shows_result=True),
    "convert": Command("convert", "turn a GPT-2 checkpoint into a repository folder, or back"),
    "prepare": Command(
        "prepare", "turn texts into token shards to train on", False, "turn down --num_workers or --shard_tokens"
    ),
    "train-tokenizer": Command(
        "train_tokenizer", "make a vocabulary of your own from texts", False, "turn down --sample_bytes"
    ),
    "push": Command("push", "push a model folder to the Hub"),
    "plot history": Command("plot_history", "the losses of several runs in one picture"),
    "plot decoding": Command("plot_decoding", "next-token probabilities at several temperatures"),
    "demo": Command("demo", "try a model in the browser"),
}


def main() -> None:
    """Run the subcommand that the command line names."""
    words = sys.argv[1:]
    for length in (1, 2):
        if (name := " ".join(words[:length])) in COMMANDS:
            return run_command(name, words[length:], f"{PROGRAM} {name}")
    return run(lambda: explain(words))


def run_command(name: str, words: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run a subcommand and leave with its exit code; its words and its name are by default those of the process."""
    command = COMMANDS[name]
    arguments = sys.argv[1:] if words is None else words
    module = f"{__package__}.{command.module}"
    run(lambda: import_module(module).main(arguments, prog), command.shows_result, command.memory_advice)


def explain(words: Sequence[str]) -> None:
    """Print what was asked for in place of a subcommand: help or the version; ValueError where it was neither."""
    parser = OneLineParser(
        prog=PROGRAM,
        description="Train, use and share a GPT written from scratch.",
        epilog=f"`{PROGRAM} COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, command in COMMANDS.items():
        if not name.startswith("plot "):
            commands.add_parser(name, help=command.help)
    plots = commands.add_parser("plot", help="draw losses (history) or next-token probabilities (decoding)")
    kinds = plots.add_subparsers(dest="kind", metavar="KIND", title="kinds", required=True)
    for name in ("history", "decoding"):
        kinds.add_parser(name, help=COMMANDS[f"plot {name}"].help)
    parser.parse_args(words)

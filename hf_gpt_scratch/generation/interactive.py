"""A session at the keyboard: type prompts, change temperature and top-k, stop a sample without leaving."""

import io
import signal
import sys
from dataclasses import fields, replace
from types import FrameType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch.generation.decoding import Decoding, generate_samples
from hf_gpt_scratch.generation.streaming import SampleStopped, StoppableStreamer
from hf_gpt_scratch.runtime.signals import SignalListener


HELP = """\
type a prompt and Enter: the model goes on; Ctrl-C stops it
/temperature 0.8   /top_k 40   /max_new_tokens 100   /seed 123   /past_context rolling: change that
/top_k none: choose among all   /seed none: another text every time   /settings: show all   /quit or Ctrl-D: leave"""
PARSERS = {"max_new_tokens": int, "temperature": float, "top_k": int, "seed": int, "past_context": str}


def run_session(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
    """Read lines from standard input until its end: commands, and prompts to continue on standard output."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 is refused as a prompt, and no end
    print(HELP)
    with SignalListener():  # in place of one that would end the program
        answer_lines(model, tokenizer, decoding)


def answer_lines(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
    """Run or continue one line after the other."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves")
            continue
        if line.strip() == "/quit":
            return
        if line.startswith("/"):
            decoding = run_command(line, decoding)
        else:
            continue_prompt(model, tokenizer, line, decoding)


def run_command(line: str, decoding: Decoding) -> Decoding:
    """Do what a line such as "/temperature 0.8" says, and say what is wrong with any other."""
    name, *values = line[1:].split()
    name = name.replace("-", "_")
    if name == "help":
        print(HELP)
    elif name == "settings":
        print("   ".join(f"{field.name} {getattr(decoding, field.name)}" for field in fields(decoding)))
    elif name not in PARSERS or len(values) != 1:
        print(f"there is no command {line!r}: /help shows all")
    else:
        try:
            changed = replace(decoding, **{name: parse(name, values[0])})
            changed.check()
        except ValueError as error:
            print(f"not changed: {error}")
        else:
            return changed
    return decoding


def parse(name: str, value: str) -> Any:
    """Parse the value of a setting."""
    return None if value.lower() == "none" else PARSERS[name](value)


def continue_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, decoding: Decoding
) -> None:
    """Stream a continuation; Ctrl-C ends this one only."""
    streamer = StoppableStreamer(tokenizer, skip_special_tokens=True)

    def stop(number: int, frame: FrameType | None) -> None:
        streamer.stopped = True

    # Noted, and acted on at the next token: an exception could come where a library drops it.
    previous = signal.signal(signal.SIGINT, stop)
    try:
        generate_samples(model, tokenizer, [prompt], decoding, streamer=streamer)
    except SampleStopped:
        streamer.end()
        print("[stopped]")
    except ValueError as error:
        print(f"error: {error}")
    finally:
        signal.signal(signal.SIGINT, previous)

"""Pretrain a GPT on text: accelerate launch scripts/train.py [--help]."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("train")

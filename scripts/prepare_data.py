"""Tokenize a corpus of any size: python scripts/prepare_data.py --source my_texts/ --output prepared."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("prepare")

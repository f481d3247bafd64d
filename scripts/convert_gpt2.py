"""Convert a GPT-2 checkpoint: python scripts/convert_gpt2.py --size 124M --output DIR."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("convert")

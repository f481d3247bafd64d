"""Score a text: python scripts/evaluate.py --model FOLDER_OR_REPO --file TEXT."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("evaluate")

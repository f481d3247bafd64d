"""Try a model in the browser: python scripts/demo.py --model FOLDER_OR_REPO."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("demo")

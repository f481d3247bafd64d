"""Continue prompts: python scripts/generate.py --model FOLDER_OR_REPO --prompt TEXT."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("generate")

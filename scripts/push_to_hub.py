"""Push a model folder to the Hugging Face Hub: python scripts/push_to_hub.py FOLDER USER/NAME.

Or bring the code of an older one up to date: python scripts/push_to_hub.py --update_code REPO_OR_FOLDER.
"""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("push")

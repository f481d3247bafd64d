"""Draw the losses of several runs in one picture: python scripts/plot_history.py runs/a runs/b --output runs.png."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("plot history")

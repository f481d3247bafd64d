"""Draw next-token probabilities at several temperatures: python scripts/plot_decoding.py."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("plot decoding")

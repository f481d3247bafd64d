"""Make a vocabulary: python scripts/train_tokenizer.py --source my_texts/ --vocab_size 16000 --output mine."""

from hf_gpt_scratch.commands.console import run_command


if __name__ == "__main__":
    run_command("train-tokenizer")

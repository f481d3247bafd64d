"""A whole training by transformers' Trainer with its default arguments: tokens, blocks, a new GPT-2, the steps.

It does what the library's example for language modeling does with a text file and no checkpoint.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed


LINES_TOGETHER = 1000  # tokenized in one call


def read_blocks(text: Path, tokenizer_folder: str, context: int) -> list[dict[str, torch.Tensor]]:
    """Tokenize a text line by line, and cut all tokens into blocks; what does not fill the last one is left out.

    Args:
        text: a file.
        tokenizer_folder: with `tokenizer.json`.
        context: tokens of a block.

    Returns:
        `input_ids` and `labels` of each block, both int64 [context].
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    lines, token_ids = text.read_text(encoding="utf-8").splitlines(keepends=True), []
    for start in range(0, len(lines), LINES_TOGETHER):
        for line in tokenizer(lines[start : start + LINES_TOGETHER])["input_ids"]:
            token_ids += line
    tokens = torch.tensor(token_ids)
    return [{"input_ids": block, "labels": block} for block in tokens.split(context) if len(block) == context]


def train(text: str, tokenizer_folder: str, output: str, sizes: dict[str, int], tokens: int, seed: int) -> None:
    """Train a new model and save it below `output`.

    Args:
        text: a file.
        tokenizer_folder: see `read_blocks`.
        output: folder of the run; the model is in its folder `model`.
        sizes: `layers`, `width`, `heads` and `context`.
        tokens: about so many are trained on, in whole steps.
        seed: of the weights and of the order.
    """
    set_seed(seed)
    blocks = read_blocks(Path(text), tokenizer_folder, sizes["context"])
    shape: dict[str, Any] = {"n_layer": sizes["layers"], "n_embd": sizes["width"], "n_head": sizes["heads"]}
    model = GPT2LMHeadModel(GPT2Config(n_positions=sizes["context"], **shape))
    arguments = TrainingArguments(output, seed=seed)
    arguments.max_steps = max(1, tokens // (arguments.per_device_train_batch_size * sizes["context"]))
    trainer = Trainer(model, arguments, train_dataset=blocks)  # type: ignore[arg-type] # a list is a dataset too
    trainer.train()
    trainer.save_model(f"{output}/model")


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))

"""The repository folder of a model: everything that loading it without this package takes."""

import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .tokenizer import build_tokenizer


def card_template() -> Template:
    """The README of a repository, with $names to fill in; in a checkout it lies in model_cards/."""
    packaged = Path(str(files("hf_gpt_scratch").joinpath("assets", "model_card.md")))
    checkout = Path(__file__).parent.parent / "model_cards" / "template.md"
    return Template((packaged if packaged.is_file() else checkout).read_text(encoding="utf-8"))


def render_card(model: PreTrainedModel, name: str, facts: dict[str, Any]) -> str:
    """Fill the card: `facts` become a table of two columns."""
    config = model.config
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "layers, heads, width": f"{config.num_hidden_layers}, {config.num_attention_heads}, {config.hidden_size}",
        "context": f"{config.max_position_embeddings} tokens",
        **facts,
    }
    return card_template().substitute(
        name=name, facts="\n".join(f"| {key} | {value} |" for key, value in rows.items())
    )


def generation_config(model: PreTrainedModel) -> GenerationConfig:
    """Special tokens only, said explicitly: the file shall not depend on what the library guesses from the config."""
    config = model.config
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )


def build_repository(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    facts: dict[str, Any] | None = None,
    max_shard_size: int | str = "5GB",
    replace: bool = False,
) -> Path:
    """Write config, safetensors, generation config, tokenizer, the three code files and a card.

    The folder is written beside and renamed, so that it is there in whole or not at all.

    Args:
        model: the bare model, any of our classes.
        folder: the folder to make.
        tokenizer: its tokenizer; none means GPT-2's, with the context of the model.
        facts: rows for the card, such as the losses.
        max_shard_size: largest weight file, in bytes or like "5GB".
        replace: put it in the place of a folder that is there already.

    Raises:
        FileExistsError: the folder is there and `replace` is not set.
    """
    folder = Path(folder)
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder} exists already: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        if model.can_generate():
            model.generation_config = generation_config(model)
        model.save_pretrained(unfinished, max_shard_size=max_shard_size)
        tokenizer = tokenizer or build_tokenizer(model_max_length=model.config.max_position_embeddings)
        tokenizer.save_pretrained(unfinished)
        card = render_card(model, folder.name, facts or {})
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        unfinished.chmod(0o777 & ~current_umask())  # mkdtemp makes folders that only the user may read
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def current_umask() -> int:
    """The permissions that new files do not get."""
    umask = os.umask(0)
    os.umask(umask)
    return umask

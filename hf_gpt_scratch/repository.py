"""The repository folder of a model: everything that loading it without this package takes."""

import json
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .tokenizer import build_tokenizer


PIPELINE_TAGS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
GENERATION_EXAMPLE = """\
token_ids = model.generate(**inputs, max_new_tokens=25, do_sample=True, temperature=1.0, top_k=25)
print(tokenizer.decode(token_ids[0]))"""
FORWARD_EXAMPLE = "print(model(**inputs)[0])"


def card_template() -> Template:
    """The README of a repository, with $names to fill in; in a checkout it lies in model_cards/."""
    packaged = Path(str(files("hf_gpt_scratch").joinpath("assets", "model_card.md")))
    checkout = Path(__file__).parent.parent / "model_cards" / "template.md"
    return Template((packaged if packaged.is_file() else checkout).read_text(encoding="utf-8"))


def render_card(model: PreTrainedModel, name: str, facts: dict[str, Any], base_model: str | None = None) -> str:
    """Fill the card: `facts` become a table of two columns, a `base_model` that is no folder a link of the Hub."""
    config = model.config
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "layers, heads, width": f"{config.num_hidden_layers}, {config.num_attention_heads}, {config.hidden_size}",
        "context": f"{config.max_position_embeddings} tokens",
        **facts,
    }
    auto_class = type(model)._auto_class or "AutoModelForCausalLM"
    return card_template().substitute(
        name=name,
        base_model=f"base_model: {base_model}\n" if base_model and not Path(base_model).exists() else "",
        origin=f"fine-tuned from `{Path(base_model).name}`" if base_model else "trained from scratch",
        auto_class=auto_class,
        pipeline_tag=PIPELINE_TAGS[auto_class],
        example=GENERATION_EXAMPLE if model.can_generate() else FORWARD_EXAMPLE,
        facts="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
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
    base_model: str | None = None,
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
        base_model: folder or Hub name of the model that training began with; none: fresh weights.
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
        model.save_pretrained(unfinished, max_shard_size=max_shard_size)
        if model.can_generate():
            generation_config(model).save_pretrained(unfinished)
        tokenizer = tokenizer or build_tokenizer(model_max_length=model.config.max_position_embeddings)
        tokenizer.save_pretrained(unfinished)
        card = render_card(model, folder.name, facts or {}, base_model)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        forget_origin(unfinished / "tokenizer_config.json")
        # mkdtemp and safetensors make folders and files that only the user may read.
        umask = current_umask()
        unfinished.chmod(0o777 & ~umask)
        for file in unfinished.iterdir():
            file.chmod(0o666 & ~umask)
        old = folder.with_name(f"{unfinished.name}-old")
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def forget_origin(tokenizer_config: Path) -> None:
    """Drop what a loaded tokenizer writes about where it came from."""
    fields = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):
        fields.pop(key, None)
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    tokenizer_config.write_text(text, encoding="utf-8")


def current_umask() -> int:
    """The permissions that new files do not get."""
    umask = os.umask(0)
    os.umask(umask)
    return umask

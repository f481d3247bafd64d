"""Write the repository folder of a model: everything that loading it without this package takes."""

import json
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.data.vocabulary import join_merges
from hf_gpt_scratch.hub.model_card import CardDetails, render_card
from hf_gpt_scratch.hub.pushable_files import may_be_pushed
from hf_gpt_scratch.runtime.files import atomic_folder, read_json, write_file, write_json
from hf_gpt_scratch.runtime.remote_code import is_code


def generation_config(model: PreTrainedModel) -> GenerationConfig:
    """Return the special tokens explicitly, so that the file does not depend on what the library guesses."""
    config = model.config
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )


def build_repository(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: CardDetails | None = None,
    max_shard_size: int | str = "5GB",
    replace: bool = False,
    kept: Collection[str] = (),
) -> Path:
    """Write config, safetensors, generation config, tokenizer, the code files and a card: all of it or nothing.

    Args:
        model: the bare model, of any class of this package.
        folder: the folder to make.
        tokenizer: its tokenizer; none means GPT-2's, with the context of the model.
        card: what the card says besides what the model knows; its pictures are copied into the folder.
        max_shard_size: largest weight file, in bytes or like "5GB".
        replace: put it in the place of a folder that is there already; files that are not of a model stay in it.
        kept: names of files that stay as they are in that folder.

    Raises:
        FileExistsError: the folder is there and `replace` is not set.
    """
    folder = Path(folder)
    with atomic_folder(folder, replace) as unfinished:
        model.save_pretrained(unfinished, max_shard_size=max_shard_size)
        if model.can_generate():
            generation_config(model).save_pretrained(unfinished)
        tokenizer = tokenizer or build_tokenizer(model_max_length=model.config.max_position_embeddings)
        tokenizer.save_pretrained(unfinished)
        settle_tokenizer(unfinished)
        card = card or CardDetails()
        write_file(unfinished / "README.md", render_card(model, folder.name, card))
        for picture in card.pictures:
            shutil.copyfile(picture, unfinished / picture.name)
        set_permissions(unfinished)
        if replace and folder.is_dir():
            copy_others(folder, unfinished, kept)
    return folder


def set_permissions(folder: Path) -> None:
    """Give files the permissions of new ones: safetensors makes such that only the user may read."""
    umask = os.umask(0)  # the permissions that new files do not get
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def copy_others(old: Path, new: Path, kept: Collection[str]) -> None:
    """Copy what somebody has put into the old folder of a model, such as a license, and the files that are kept."""
    for path in old.iterdir():
        is_of_model = may_be_pushed(path.name) and path.name != "LICENSE"
        is_of_model = is_of_model or is_code(path.name) or path.name == "__pycache__"
        if path.name in kept or not (is_of_model or (new / path.name).exists()):
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True)
            else:
                shutil.copy2(path, new / path.name, follow_symlinks=False)


def settle_tokenizer(folder: Path) -> None:
    """Edit a saved tokenizer so that every release of the libraries reads it.

    A loaded tokenizer forgets where it came from. config.json names its class, without which `pipeline` of older
    releases of transformers does not look for one. Merges become strings, unless no string can hold them.
    """
    settings = read_json(folder / "tokenizer_config.json")
    for key in ("is_local", "local_files_only"):
        settings.pop(key, None)
    write_json(folder / "tokenizer_config.json", settings)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"tokenizer_class": settings["tokenizer_class"]})
    if (file := folder / "tokenizer.json").is_file():  # the tokenizers of some models have none
        content = read_json(file)
        if content["model"]["type"] == "BPE":
            with suppress(ValueError):
                content["model"]["merges"] = join_merges(content["model"]["merges"])
                write_file(file, json.dumps(content, indent=2, ensure_ascii=False))

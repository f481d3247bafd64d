"""The files around the weights, written without torch and transformers, which take seconds to import.

Tests hold every one of them against what transformers itself writes for the same model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID, join_merges, read_merges, spell_tokens
from hf_gpt_scratch.runtime.files import write_json
from hf_gpt_scratch.runtime.remote_code import AUTO_MAP, read_code


NUM_GPT2_TOKENS = END_OF_TEXT_ID + 1
TOKENIZER_CLASS = "GPT2Tokenizer"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def transformers_version() -> str:
    """Return the installed version without importing it."""
    # Imported here: it brings the email package, which the writing of weights does without.
    from importlib.metadata import version

    return version("transformers")


def write_model_files(folder: Path, config: Mapping[str, Any], dtype: str) -> None:
    """Write config.json, generation_config.json, the code files and, where it fits, GPT-2's tokenizer."""
    about = {"architectures": ["GPTScratchForCausalLM"], "auto_map": AUTO_MAP, "model_type": "gpt_scratch"}
    about |= {"dtype": dtype, "transformers_version": transformers_version()}
    if has_gpt2_vocabulary(config):
        about["tokenizer_class"] = TOKENIZER_CLASS
        write_tokenizer(folder, config["max_position_embeddings"])
    write_json(folder / "config.json", {**config, **about})
    write_generation_config(folder, config)
    for name, content in read_code().items():
        (folder / name).write_bytes(content)


def write_generation_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the special tokens, those that are set."""
    special = {key: config[key] for key in SPECIAL_TOKENS if config[key] is not None}
    write_json(folder / "generation_config.json", special | {"transformers_version": transformers_version()})


def has_gpt2_vocabulary(config: Mapping[str, Any]) -> bool:
    """Return True if every id of GPT-2's tokenizer has an embedding; more rows are padding of the vocabulary."""
    return config["vocab_size"] >= NUM_GPT2_TOKENS


def write_tokenizer(folder: Path, model_max_length: int) -> None:
    """Write GPT-2's tokenizer, byte for byte as `build_repository` writes `build_tokenizer(model_max_length)`."""
    merges = read_merges()
    tokens = [*spell_tokens(merges), END_OF_TEXT]
    end_of_text = {"id": len(tokens) - 1, "content": END_OF_TEXT, "single_word": False, "lstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    first, second = ({"Sequence": {"id": letter, "type_id": index}} for index, letter in enumerate("AB"))
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text | {"rstrip": False, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first],
            "pair": [first, second],
            "special_tokens": {},
        },
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": join_merges(merges),
        },
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    settings = {
        "add_prefix_space": False,
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": model_max_length,
        "padding_side": "left",
        "tokenizer_class": TOKENIZER_CLASS,
        **{f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad", "unk")},
    }
    write_json(folder / "tokenizer_config.json", settings)

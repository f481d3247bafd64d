"""The files around the weights, written without torch and transformers, which take seconds to import.

Tests hold every one of them against what transformers itself writes for the same model.
"""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_gpt_scratch.vocabulary import END_OF_TEXT, END_OF_TEXT_ID, read_merges, spell_tokens


CODE_FILES = (
    "configuration_gpt_scratch.py",
    "generation_gpt_scratch.py",
    "loss_gpt_scratch.py",
    "modeling_gpt_scratch.py",
)
AUTO_MAP = {
    "AutoConfig": "modeling_gpt_scratch.GPTScratchConfig",
    "AutoModel": "modeling_gpt_scratch.GPTScratchModel",
    "AutoModelForCausalLM": "modeling_gpt_scratch.GPTScratchForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gpt_scratch.GPTScratchForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gpt_scratch.GPTScratchForTokenClassification",
}
NUM_GPT2_TOKENS = END_OF_TEXT_ID + 1
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def transformers_version() -> str:
    """The installed version, without importing it."""
    # Imported here: it brings the email package, which the writing of weights does without.
    from importlib.metadata import version

    return version("transformers")


def write_json(path: Path, content: dict[str, Any], *, final_newline: bool = True) -> None:
    """Write JSON as transformers does: keys sorted, two spaces."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n" * final_newline, encoding="utf-8")


def write_model_files(folder: Path, config: dict[str, Any], dtype: str) -> None:
    """Write config.json, generation_config.json, the code files and, where it fits, GPT-2's tokenizer."""
    about = {"architectures": ["GPTScratchForCausalLM"], "auto_map": AUTO_MAP, "model_type": "gpt_scratch"}
    write_json(
        folder / "config.json", config | about | {"dtype": dtype, "transformers_version": transformers_version()}
    )
    write_generation_config(folder, config)
    for name in CODE_FILES:
        shutil.copyfile(str(files("hf_gpt_scratch") / "model" / name), folder / name)
    if has_gpt2_vocabulary(config):
        write_tokenizer(folder, config["max_position_embeddings"])


def write_generation_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the special tokens, those that are set."""
    special = {key: config[key] for key in SPECIAL_TOKENS if config[key] is not None}
    write_json(folder / "generation_config.json", special | {"transformers_version": transformers_version()})


def has_gpt2_vocabulary(config: dict[str, Any]) -> bool:
    """Whether GPT-2's tokenizer fits: its ids all have an embedding. More rows are padding of the vocabulary."""
    return config["vocab_size"] >= NUM_GPT2_TOKENS


def write_tokenizer(folder: Path, model_max_length: int) -> None:
    """Write GPT-2's tokenizer, byte for byte as `build_tokenizer(model_max_length).save_pretrained` does."""
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
            "merges": merges,
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
        "tokenizer_class": "GPT2Tokenizer",
        **{f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad", "unk")},
    }
    write_json(folder / "tokenizer_config.json", settings)

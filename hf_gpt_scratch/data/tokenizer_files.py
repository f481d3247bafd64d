"""The files of a tokenizer, written without torch and transformers, which take seconds to import.

Tests hold them against what transformers itself writes.
"""

import json
from pathlib import Path
from typing import Any

from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, Vocabulary, join_merges
from hf_gpt_scratch.runtime.files import write_file, write_json


TOKENIZER_CLASS = "GPT2Tokenizer"
NO_MAX_LENGTH = int(1e30)  # what the library takes for none


def write_tokenizer(folder: Path, vocabulary: Vocabulary, model_max_length: int = NO_MAX_LENGTH) -> None:
    """Write a tokenizer, byte for byte as `build_repository` writes `build_tokenizer(model_max_length, vocabulary)`.

    Args:
        folder: that is there.
        vocabulary: of the tokenizer.
        model_max_length: longest input of the model in tokens; of a vocabulary without a model, no limit.

    Raises:
        OSError: a file cannot be written.
    """
    write_file(folder / "tokenizer.json", json.dumps(tokenizer_rules(vocabulary), indent=2, ensure_ascii=False))
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


def tokenizer_rules(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of `tokenizer.json`, merges as strings, which every release of tokenizers reads."""
    end_of_text = {"id": vocabulary.end_of_text_id, "content": END_OF_TEXT, "single_word": False, "lstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    first, second = ({"Sequence": {"id": letter, "type_id": index}} for index, letter in enumerate("AB"))
    return {
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
            "vocab": vocabulary.ids,
            "merges": join_merges(vocabulary.merges),
        },
    }

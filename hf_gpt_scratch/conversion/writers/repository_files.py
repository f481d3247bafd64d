"""Write the files of a model beside its weights, without torch and transformers, which take seconds to import.

Tests hold every one of them against what transformers itself writes for the same model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_gpt_scratch.data.tokenizer_files import TOKENIZER_CLASS, write_tokenizer
from hf_gpt_scratch.data.vocabulary import Vocabulary
from hf_gpt_scratch.runtime.files import write_json
from hf_gpt_scratch.runtime.remote_code import AUTO_MAP, read_code


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def transformers_version() -> str:
    """Return the installed version without importing it."""
    # Imported here: it brings the email package, which the writing of weights does without.
    from importlib.metadata import version

    return version("transformers")


def write_model_files(folder: Path, config: Mapping[str, Any], dtype: str, vocabulary: Vocabulary | None) -> None:
    """Write config.json, generation_config.json, the code files and the tokenizer of a vocabulary, if there is one."""
    about = {"architectures": ["GPTScratchForCausalLM"], "auto_map": AUTO_MAP, "model_type": "gpt_scratch"}
    about |= {"dtype": dtype, "transformers_version": transformers_version()}
    if vocabulary is not None:
        about["tokenizer_class"] = TOKENIZER_CLASS
        write_tokenizer(folder, vocabulary, config["max_position_embeddings"])
    write_json(folder / "config.json", {**config, **about})
    write_generation_config(folder, config)
    for name, content in read_code().items():
        (folder / name).write_bytes(content)


def write_generation_config(folder: Path, config: Mapping[str, Any], **more: Any) -> None:
    """Write the special tokens, those that are set, and `more` fields."""
    special = {key: config[key] for key in SPECIAL_TOKENS if config[key] is not None}
    write_json(folder / "generation_config.json", special | more | {"transformers_version": transformers_version()})

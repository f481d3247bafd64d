"""A trained model and its tokenizer, from a folder or the Hub."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from . import registration as registration  # a script may have put it off


def load_model_and_tokenizer(name_or_path: str, **changes: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load for evaluation or generation, onto the GPU if there is one. Code from the repository is never run.

    Args:
        name_or_path: a folder or Hub name.
        **changes: values that override those of its config.

    Raises:
        OSError: there is no such folder or repository, or it is not complete; one line.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = f": did you mean {folder / 'model'}?" if (folder / "model" / "config.json").is_file() else ""
        raise FileNotFoundError(f"{folder} holds no config.json, so it is no model folder{hint}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name_or_path, trust_remote_code=False, output_loading_info=True, **changes
        )
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, HTTPError, SafetensorError) as error:
        raise OSError(f"cannot load {name_or_path}: {' '.join(str(error).split())}") from None
    if report["missing_keys"]:
        raise OSError(f"cannot load {name_or_path}: it lacks the weights {', '.join(sorted(report['missing_keys']))}")
    # By the class that config.json names, the library makes a tokenizer without its settings, which pads to the right.
    is_ours = folder.is_dir() and model.config.model_type == "gpt_scratch"
    lacks_settings = is_ours and not (folder / "tokenizer_config.json").is_file()
    if lacks_settings or tokenizer.eos_token_id is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OSError(f"cannot load {name_or_path}: its tokenizer is not complete")
    return model.to(device).eval(), tokenizer

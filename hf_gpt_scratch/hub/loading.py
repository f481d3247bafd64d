"""Load a trained model and its tokenizer, from a folder or the Hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch import registration as registration  # what loads without trust_remote_code
from hf_gpt_scratch.hub.pushable_files import corrupt_files
from hf_gpt_scratch.runtime.cli import name_some
from hf_gpt_scratch.runtime.files import model_of_run
from hf_gpt_scratch.runtime.out_of_memory import is_out_of_memory


HUB_SECONDS = 10  # without an answer before a name is given up
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


def load_model_and_tokenizer(name_or_path: str, **changes: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load for evaluation or generation, onto the GPU if there is one. Code from the repository is never run.

    Args:
        name_or_path: a folder or Hub name.
        **changes: values that override those of its config.

    Raises:
        OSError: there is no such folder or repository, or it is not complete, or its weights are not those that its
            config asks for; one line.
    """
    refuse_absent(name_or_path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with table_hidden():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below
                **changes,
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # the kind depends on what the files hold
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:  # the library's advice, which no command here can follow
            reason = "the model_type in its config.json is none that is known here, and code of a model is never run"
        raise OSError(f"cannot load {name_or_path}: {reason}") from None
    if problems := "; ".join([*wrong_weights(report), *wrong_values(model, tokenizer)]):
        raise OSError(f"cannot load {name_or_path}: {problems}")
    # By the class that config.json names, the library makes a tokenizer without its settings, which pads to the right.
    is_ours = Path(name_or_path).is_dir() and model.config.model_type == "gpt_scratch"
    lacks_settings = is_ours and not (Path(name_or_path) / "tokenizer_config.json").is_file()
    if lacks_settings or tokenizer.eos_token_id is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OSError(f"cannot load {name_or_path}: its tokenizer is not complete")
    return model.to(device).eval(), tokenizer


def refuse_absent(name_or_path: str) -> None:
    """Raise OSError where nothing can be loaded, with the file that is damaged.

    For a name of nothing the library would ask the Hub six times, which takes 30 s.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = f": did you mean {model}?" if (model := model_of_run(folder)) else ""
            raise FileNotFoundError(f"{folder} holds no config.json, so it is not a model folder{hint}")
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise FileNotFoundError(
                f"{folder} holds no tokenizer: save the one that the model was trained with there, as tokenizer.json"
            )
        if problems := corrupt_files(folder):
            raise OSError(f"cannot load {folder}: {'; '.join(problems)}")
        return
    try:
        if not isinstance(try_to_load_from_cache(name_or_path, "config.json"), str):
            HfApi().model_info(name_or_path, timeout=HUB_SECONDS)
    except Exception as error:  # no name of the Hub, no such repository, no network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"cannot load {name_or_path}: there is no such folder, and the Hub gives no model of that name ({reason})"
        ) from None


@contextmanager
def table_hidden() -> Iterator[None]:
    """Keep the library from printing its table of weights, whose lines are raised here as errors."""

    def is_no_table(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_table)
    try:
        yield
    finally:
        logger.removeFilter(is_no_table)


def wrong_weights(report: dict[str, Any]) -> Iterator[str]:
    """Say which weights are missing, left over or of another shape than the config says."""
    if missing := sorted(report["missing_keys"]):
        yield f"it lacks the weights {name_some(missing)}"
    if left_over := sorted(report["unexpected_keys"]):
        yield f"its config.json has no place for the weights {name_some(left_over)}"
    if mismatched := sorted(report["mismatched_keys"]):
        shapes = [f"{name} is {list(stored)}, not {list(wanted)}" for name, stored, wanted in mismatched]
        yield f"its weights have other shapes than its config.json says: {name_some(shapes)}"


def wrong_values(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Say which weights are not finite, which special tokens are not ids, and whether the tokenizer is another's."""
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        yield f"its weights are not finite in {name_some(broken)}"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.generation_config, name, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token_id, int) for token_id in ids):
            yield f"its generation_config.json has {name} {value!r}, which is not a token id"
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= model.config.vocab_size:
        yield f"its tokenizer has the token id {largest}, its model {model.config.vocab_size} embeddings"

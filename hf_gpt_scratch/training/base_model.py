"""Start from an existing model: its architecture and vocabulary go into the settings, its weights into the run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.vocabulary import NAMES, Vocabulary, named_vocabulary
from hf_gpt_scratch.data.vocabulary_folder import known_vocabulary, load_vocabulary
from hf_gpt_scratch.hub.loading import load_model_and_tokenizer, refuse_absent
from hf_gpt_scratch.training.settings import ARCHITECTURE, TrainingSettings


if TYPE_CHECKING:
    from hf_gpt_scratch.data.tokenizer import AnyTokenizer


@dataclass(frozen=True)
class BaseModel:
    """Config and tokenizer of a model, read before its weights are loaded."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary | None  # None: tiktoken does not give the ids of its tokenizer

    @property
    def stored_dtype(self) -> str | None:
        """The dtype of the stored weights, according to the config."""
        return None if self.config.dtype is None else str(self.config.dtype).removeprefix("torch.")

    @property
    def rows_without_token(self) -> list[int]:
        """Ids of embeddings without a token, such as those that round a vocabulary up."""
        return sorted(set(range(self.config.vocab_size)) - set(self.tokenizer.get_vocab().values()))

    @property
    def encoding(self) -> "AnyTokenizer":
        """The encoder of texts: tiktoken if it gives the same ids, else the tokenizer."""
        return self.tokenizer if self.vocabulary is None else load_encoding(self.vocabulary)


def read_base_model(settings: TrainingSettings) -> BaseModel | None:
    """Read config and tokenizer of `model_name_or_path`; return None without one.

    Raises:
        ValueError: the model is of another type, or its tokenizer has more tokens than it has embeddings.
        OSError: config or tokenizer cannot be read.
    """
    name = settings.model_name_or_path
    if name is None:
        return None
    if not Path(name).is_dir():
        refuse_absent(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the kind depends on what the files hold
        refuse_absent(name)  # knows the file
        raise OSError(f"cannot read --model_name_or_path {name}: {' '.join(str(error).split())}") from None
    if config.model_type != "gpt_scratch":
        raise ValueError(
            f"--model_name_or_path {name} is a {config.model_type} model: convert it with hf-gpt-scratch convert"
        )
    refuse_absent(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise OSError(f"cannot read the tokenizer of --model_name_or_path {name}: {reason}") from None
    if tokenizer.eos_token_id is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OSError(f"cannot read the tokenizer of --model_name_or_path {name}: it is not complete")
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise ValueError(
            f"--model_name_or_path {name} has {config.vocab_size} embeddings and its tokenizer the id {largest}: save "
            f"it after model.resize_token_embeddings({largest + 1})"
        )
    return BaseModel(config, tokenizer, known_vocabulary(tokenizer))


def with_base_model(settings: TrainingSettings, base: BaseModel | None) -> TrainingSettings:
    """Fill in the architecture and vocabulary of the base model, so that settings and history describe the model.

    Raises:
        ValueError: a setting contradicts the model, or the prepared tokens are not its tokens.
    """
    if base is None:
        return settings
    name = settings.model_name_or_path
    own = {field: getattr(base.config, field) for field in ARCHITECTURE}
    wrong = [
        f"--{field} {getattr(settings, field)} contradicts {name}, which has {value}: leave it out"
        for field, value in own.items()
        if getattr(settings, field) not in (None, value)
    ]
    if settings.vocabulary is not None and load_vocabulary(settings.vocabulary) != base.vocabulary:
        has = f"the vocabulary {base.vocabulary}" if base.vocabulary else "a tokenizer of its own"
        wrong.append(f"--vocabulary {settings.vocabulary} contradicts {name}, which has {has}: leave it out")
    if settings.train_data is not None and base.vocabulary is None:
        known = named_vocabulary("gpt2").ids.items()
        if not known <= base.tokenizer.get_vocab().items():
            wrong.append(f"--train_data holds GPT-2's tokens, which are not those of {name}: use --train_file")
    if wrong:
        raise ValueError("; ".join(wrong))
    name = base.vocabulary.name if base.vocabulary else None
    return replace(settings, vocabulary=name if name in NAMES else settings.vocabulary, **own)


def load_base_model(name: str, settings: TrainingSettings) -> PreTrainedModel:
    """Load the weights of the base model `name`, with the dropout, attention and dtype of the settings.

    Raises:
        OSError: weights or tokenizer cannot be read or are not complete.
    """
    model, _ = load_model_and_tokenizer(
        name,
        dropout=settings.dropout,
        attn_implementation=settings.attn_implementation,
        dtype=getattr(torch, settings.weights_dtype),  # however the folder stores them
    )
    return model

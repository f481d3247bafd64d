"""Starting from a model that exists: its architecture into the settings, its weights into the run."""

from dataclasses import replace

from transformers import AutoConfig, PreTrainedModel

from hf_gpt_scratch.loading import load_model_and_tokenizer
from hf_gpt_scratch.tokenizer import build_tokenizer
from hf_gpt_scratch.vocabulary import END_OF_TEXT_IDS

from .settings import ARCHITECTURE, TrainingSettings


def with_base_architecture(settings: TrainingSettings) -> TrainingSettings:
    """Fill in the architecture of `model_name_or_path`, so that settings and history say what is trained.

    Raises:
        ValueError: a setting contradicts the model, or it is no model of ours with the vocabulary of the settings.
        OSError: it cannot be read.
    """
    name = settings.model_name_or_path
    if name is None:
        return settings
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot read --model_name_or_path {name}: {' '.join(str(error).split())}") from None
    if config.model_type != "gpt_scratch":
        raise ValueError(
            f"--model_name_or_path {name} is a {config.model_type} model: convert it with scripts/convert_gpt2.py"
        )
    vocab_size = END_OF_TEXT_IDS[settings.vocabulary] + 1
    if config.vocab_size != vocab_size:
        raise ValueError(
            f"--model_name_or_path {name} has {config.vocab_size} tokens, --vocabulary {settings.vocabulary} has "
            f"{vocab_size}: choose the vocabulary that the model was trained with"
        )
    defaults = TrainingSettings()
    for field in ARCHITECTURE:
        wanted, own = getattr(settings, field), getattr(config, field)
        if wanted not in (own, getattr(defaults, field)):
            raise ValueError(f"--{field} {wanted} contradicts {name}, which has {own}: leave it out")
    return replace(settings, **{field: getattr(config, field) for field in ARCHITECTURE})


def load_base_model(settings: TrainingSettings) -> PreTrainedModel:
    """Load the weights of `model_name_or_path`, with the dropout and attention of the settings.

    Raises:
        OSError: weights or tokenizer cannot be read or are not complete.
        ValueError: its tokenizer is another one.
    """
    changes = {"dropout": settings.dropout, "attn_implementation": settings.attn_implementation}
    model, tokenizer = load_model_and_tokenizer(settings.model_name_or_path, **changes)
    if tokenizer.get_vocab() != build_tokenizer(vocabulary=settings.vocabulary).get_vocab():
        raise ValueError(
            f"--model_name_or_path {settings.model_name_or_path} has another tokenizer than --vocabulary "
            f"{settings.vocabulary}"
        )
    return model

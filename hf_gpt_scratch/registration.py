"""Register the classes with the Auto classes of transformers; importing this module does it."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .model import (
    GPTScratchConfig,
    GPTScratchForCausalLM,
    GPTScratchForSequenceClassification,
    GPTScratchForTokenClassification,
    GPTScratchModel,
)


# All or nothing: with the config alone registered, the library would mix our config with a repository's model.
AutoConfig.register(GPTScratchConfig.model_type, GPTScratchConfig)
for auto_class, model_class in (
    (AutoModel, GPTScratchModel),
    (AutoModelForCausalLM, GPTScratchForCausalLM),
    (AutoModelForSequenceClassification, GPTScratchForSequenceClassification),
    (AutoModelForTokenClassification, GPTScratchForTokenClassification),
):
    auto_class.register(GPTScratchConfig, model_class)

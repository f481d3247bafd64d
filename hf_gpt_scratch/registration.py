"""Makes our classes known to transformers; importing this module does it."""

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
GPTScratchConfig.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, GPTScratchModel),
    (AutoModelForCausalLM, GPTScratchForCausalLM),
    (AutoModelForSequenceClassification, GPTScratchForSequenceClassification),
    (AutoModelForTokenClassification, GPTScratchForTokenClassification),
):
    auto_class.register(GPTScratchConfig, model_class)
    # Registered for an Auto class, save_pretrained copies the code beside the weights.
    model_class.register_for_auto_class(auto_class.__name__)

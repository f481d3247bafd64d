"""A GPT written from scratch that is at home in the Hugging Face ecosystem.

Importing this package registers its classes with the Auto classes of transformers, so that
`AutoModelForCausalLM.from_pretrained` loads a `gpt_scratch` repository without `trust_remote_code`.
"""

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
    GPTScratchPreTrainedModel,
    TemperatureTopKLogitsProcessor,
)


__version__ = "0.1.0"

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

__all__ = [
    "GPTScratchConfig",
    "GPTScratchForCausalLM",
    "GPTScratchForSequenceClassification",
    "GPTScratchForTokenClassification",
    "GPTScratchModel",
    "GPTScratchPreTrainedModel",
    "TemperatureTopKLogitsProcessor",
]

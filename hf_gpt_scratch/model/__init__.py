"""The files that ship with every repository; this one only re-exports them and stays at home."""

from .configuration_gpt_scratch import AUTO_MAP
from .generation_gpt_scratch import SeededDrawLogitsProcessor, TemperatureTopKLogitsProcessor
from .modeling_gpt_scratch import (
    GPTScratchConfig,
    GPTScratchForCausalLM,
    GPTScratchForSequenceClassification,
    GPTScratchForTokenClassification,
    GPTScratchModel,
    GPTScratchPreTrainedModel,
)


__all__ = [
    "AUTO_MAP",
    "GPTScratchConfig",
    "GPTScratchForCausalLM",
    "GPTScratchForSequenceClassification",
    "GPTScratchForTokenClassification",
    "GPTScratchModel",
    "GPTScratchPreTrainedModel",
    "SeededDrawLogitsProcessor",
    "TemperatureTopKLogitsProcessor",
]

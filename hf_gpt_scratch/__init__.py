"""A GPT written from scratch that is at home in the Hugging Face ecosystem.

Importing this package imports no other. The first use of a public class, or `import hf_gpt_scratch.registration`,
imports torch and registers the classes with the Auto classes of transformers, so that
`AutoModelForCausalLM.from_pretrained` loads a `gpt_scratch` repository without `trust_remote_code`.
"""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .model import (
        GPTScratchConfig,
        GPTScratchForCausalLM,
        GPTScratchForSequenceClassification,
        GPTScratchForTokenClassification,
        GPTScratchModel,
        GPTScratchPreTrainedModel,
        SeededDrawLogitsProcessor,
        TemperatureTopKLogitsProcessor,
    )

__version__ = "0.2.0"

__all__ = [
    "GPTScratchConfig",
    "GPTScratchForCausalLM",
    "GPTScratchForSequenceClassification",
    "GPTScratchForTokenClassification",
    "GPTScratchModel",
    "GPTScratchPreTrainedModel",
    "SeededDrawLogitsProcessor",
    "TemperatureTopKLogitsProcessor",
]


def __getattr__(name: str) -> Any:
    """Import and register the public classes when one is first used (PEP 562)."""
    if name in __all__:
        importlib.import_module(".registration", __name__)
        return getattr(importlib.import_module(".model", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public classes too, whether imported yet or not."""
    return sorted({*globals(), *__all__})

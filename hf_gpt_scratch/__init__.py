"""A GPT written from scratch that is at home in the Hugging Face ecosystem.

Importing this package registers its classes with the Auto classes of transformers, so that
`AutoModelForCausalLM.from_pretrained` loads a `gpt_scratch` repository without `trust_remote_code`.
"""

import importlib
import os
from typing import Any


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

# Registering imports torch and transformers, which takes seconds. Scripts that do without them say so before.
if os.environ.get("HF_GPT_SCRATCH_REGISTER", "1") != "0":
    from . import registration as registration


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for (PEP 562)."""
    if name in __all__:
        return getattr(importlib.import_module(".model", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

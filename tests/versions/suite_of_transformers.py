"""An exported folder in transformers' own test suite: copied into its tests/models/gpt_scratch, not collected here."""

import os
import unittest

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import modeling_auto

from tests.causal_lm_tester import CausalLMModelTest, CausalLMModelTester


def shipped(name: str) -> type:
    """Return a class of the exported folder."""
    return get_class_from_dynamic_module(f"modeling_gpt_scratch.{name}", os.environ["EXPORTED_FOLDER"])


class GPTScratchModelTester(CausalLMModelTester):
    config_class = shipped("GPTScratchConfig")
    base_model_class = shipped("GPTScratchModel")
    causal_lm_class = shipped("GPTScratchForCausalLM")
    sequence_classification_class = shipped("GPTScratchForSequenceClassification")
    token_classification_class = shipped("GPTScratchForTokenClassification")
    # Fields that the suite sets if it finds them in the signature of a configuration; ours takes any keywords.
    forced_config_args = [
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("max_position_embeddings", "initializer_range", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ]


# By these the suite knows what a class is for; remote code is in none of them.
CLASSES = (
    (AutoModel, "MODEL", GPTScratchModelTester.base_model_class),
    (AutoModelForCausalLM, "MODEL_FOR_CAUSAL_LM", GPTScratchModelTester.causal_lm_class),
    (
        AutoModelForSequenceClassification,
        "MODEL_FOR_SEQUENCE_CLASSIFICATION",
        GPTScratchModelTester.sequence_classification_class,
    ),
    (
        AutoModelForTokenClassification,
        "MODEL_FOR_TOKEN_CLASSIFICATION",
        GPTScratchModelTester.token_classification_class,
    ),
)
AutoConfig.register("gpt_scratch", GPTScratchModelTester.config_class)
for auto_class, kind, model_class in CLASSES:
    auto_class.register(GPTScratchModelTester.config_class, model_class)
    getattr(modeling_auto, f"{kind}_MAPPING_NAMES")["gpt_scratch"] = model_class.__name__


class GPTScratchModelTest(CausalLMModelTest, unittest.TestCase):
    model_tester_class = GPTScratchModelTester

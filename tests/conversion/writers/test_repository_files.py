"""Proves that the files written without transformers are those that transformers writes, byte for byte."""

import json
from pathlib import Path

import pytest

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.conversion.source_config import ACTIVATIONS, DEFAULTS
from hf_gpt_scratch.conversion.writers.repository_files import write_model_files
from hf_gpt_scratch.data.vocabulary import named_vocabulary
from hf_gpt_scratch.hub.repository import build_repository


SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"vocab_size": 50257}, "float32"),
        ({"vocab_size": 50257, "dropout": 0, "qkv_bias": False, "hidden_act": "gelu"}, "bfloat16"),
        ({"vocab_size": 50304, "layer_norm_eps": 1e-6, "tie_word_embeddings": False, "pad_token_id": None}, "float16"),
        ({"vocab_size": 30, "intermediate_size": 9, "use_cache": False, **NO_TOKENS}, "float32"),
        ({"vocab_size": 30, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}, "float32"),
    ],
)
def test_files_are_those_of_transformers(changes: dict, dtype: str, tmp_path: Path) -> None:
    import torch

    config = DEFAULTS | SMALL | changes
    model = GPTScratchForCausalLM(GPTScratchConfig(**config)).to(getattr(torch, dtype))
    build_repository(model, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    vocabulary = named_vocabulary("gpt2") if config["vocab_size"] >= 50257 else None
    write_model_files(tmp_path / "ours", config, dtype, vocabulary)
    names = {path.name for path in (tmp_path / "theirs").iterdir()} - {"README.md", "model.safetensors"}
    if config["vocab_size"] < 50257:
        names -= {"tokenizer.json", "tokenizer_config.json"}
        theirs = tmp_path / "theirs" / "config.json"
        # Without a tokenizer, none is named.
        theirs.write_text(theirs.read_text("utf-8").replace('  "tokenizer_class": "GPT2Tokenizer",\n', ""), "utf-8")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name


def test_defaults_are_those_of_the_config() -> None:
    config = GPTScratchConfig().to_dict()
    assert {key: config[key] for key in DEFAULTS} == DEFAULTS
    assert json.loads(json.dumps(DEFAULTS)) == DEFAULTS


def test_activations_are_known_to_the_config() -> None:
    for name in ACTIVATIONS.values():
        assert GPTScratchConfig(hidden_act=name).hidden_act == name

# Copyright 2026 The hf_gpt_scratch authors. SPDX-License-Identifier: Apache-2.0  # trf-ignore: TRF028
"""Hyperparameters of the GPT: each declared once, with its type, default and rule. Shipped with every repository.

A plain `__init__` is the one form of configuration that works on transformers 4 and 5.
"""

import math
from typing import Any

import transformers
from transformers import PretrainedConfig
from transformers.activations import ACT2FN


VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if VERSION < (4, 40):
    raise ImportError(
        f"the code of this model needs transformers 4.40 or newer, and this is {transformers.__version__}: "
        "pip install -U transformers, or use a folder written by convert_gpt2.py --export_stock, which has no code"
    )

# Where the Auto classes find our classes in a saved folder; the library alone would write two of these entries. All
# are in one file: it tells the code of two folders of one name apart by the file named here and what that imports.
AUTO_MAP = {
    "AutoConfig": "modeling_gpt_scratch.GPTScratchConfig",
    "AutoModel": "modeling_gpt_scratch.GPTScratchModel",
    "AutoModelForCausalLM": "modeling_gpt_scratch.GPTScratchForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gpt_scratch.GPTScratchForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gpt_scratch.GPTScratchForTokenClassification",
}

# What a field may be: its type, its rule in words, its rule. None is a token id as well: there is no such token.
SIZE = int, "must be at least 1", lambda value: value >= 1
SCALE = float, "must be above 0 and finite", lambda value: 0 < value < math.inf
FLAG = bool, "", lambda value: True
TOKEN = int, "", lambda value: True
NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}  # norm_type -> class of torch.nn, RMSNorm from torch 2.4 on
RULES = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size"), SIZE),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), SIZE),
    **dict.fromkeys(("layer_norm_eps", "initializer_range"), SCALE),
    **dict.fromkeys(("qkv_bias", "tie_word_embeddings", "use_cache"), FLAG),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), TOKEN),
    "dropout": (float, "must be at least 0 and below 1", lambda value: 0 <= value < 1),
    "norm_type": (str, f"must be one of {', '.join(NORMS)}", NORMS.__contains__),
    "hidden_act": (str, f"must be one of {', '.join(sorted(ACT2FN))}", ACT2FN.__contains__),
}


def check_field(field: str, value: Any) -> None:
    """Raise a ValueError of one line if `value` breaks the rule of `field`."""
    kind, rule, holds = RULES[field]
    values = value if field == "eos_token_id" and isinstance(value, list) else [value]
    for one in [] if value is None and RULES[field] is TOKEN else values:
        is_kind = isinstance(one, (int, float) if kind is float else kind)
        if not is_kind or (isinstance(one, bool) and kind is not bool):
            raise ValueError(f"GPTScratchConfig: '{field}' expected {kind.__name__}, got {value!r}")
        if not holds(one):
            raise ValueError(f"GPTScratchConfig: '{field}' {rule}, got {value!r}")


class GPTScratchFields(PretrainedConfig):  # trf-ignore: TRF057 trf-ignore: TRF010
    r"""Architecture of a GPT-2 style decoder. The defaults are GPT-2 124M.

    The names of GPT-2 and of the tutorial in `attribute_map` and `keywords` are accepted for the same fields.

    Args:
        vocab_size (`int`): Number of token ids.
        max_position_embeddings (`int`): Number of learned positions: the longest context in tokens.
        hidden_size (`int`): Width of the residual stream, a multiple of `num_attention_heads`.
        num_hidden_layers, num_attention_heads (`int`): Number of decoder layers, and of attention heads in each.
        intermediate_size (`int`): Width of the MLP, by default 4 * `hidden_size`.
        hidden_act (`str`): Activation of the MLP; the default is GPT-2's GELU in tanh form, as one PyTorch kernel.
        dropout (`float`): Probability of zeroing an element of embeddings, attention weights and residual branches.
        qkv_bias (`bool`): Whether the query, key and value projections have a bias.
        norm_type (`str`): "layernorm", or "rmsnorm" (arXiv:1910.07467), which takes off no mean and has no shift.
        layer_norm_eps (`float`): Added to the variance or mean square in each normalization.
        initializer_range (`float`): Standard deviation of fresh weights, / sqrt(2 * layers) for residual projections.
        tie_word_embeddings, use_cache (`bool`): Whether the head is the token embedding; whether to return the cache.
        bos_token_id, eos_token_id, pad_token_id (`int`): `<|endoftext|>` serves as all three.

    Raises:
        ValueError: a value breaks its rule; one line names field, value and rule.
    """

    model_type = "gpt_scratch"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        "n_embd": "hidden_size",  # GPT-2's names
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "n_inner": "intermediate_size",
        "num_key_value_heads": "num_attention_heads",
        "emb_dim": "hidden_size",  # the tutorial's
        "context_length": "max_position_embeddings",
        "drop_rate": "dropout",
    }
    # Of __init__ alone, not attributes: TransformerLens sets these three on a copy and reads its __dict__.
    keywords = {"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "n_ctx": "max_position_embeddings"}
    base_model_tp_plan = {f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"} | {
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 50257
    max_position_embeddings: int = 1024
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu_pytorch_tanh"
    dropout: float = 0.1
    qkv_bias: bool = True
    norm_type: str = "layernorm"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = 50256

    def __init__(self, **kwargs: Any) -> None:
        given: dict[str, tuple[str, Any]] = {}
        for name, value in kwargs.items():
            field = (self.attribute_map | self.keywords).get(name, name)
            other_name, other_value = given.setdefault(field, (name, value))
            if other_name != name and other_value != value:
                raise ValueError(f"{name}={value} contradicts {other_name}={other_value}: both are {field}")
        fields = {field: given.pop(field, (field, getattr(type(self), field)))[1] for field in RULES}
        # The library has defaults of its own for some of the fields, so ours are set after it.
        super().__init__(**{field: value for field, (_, value) in given.items()})
        check_field("hidden_size", fields["hidden_size"])
        if fields["intermediate_size"] is None:
            fields["intermediate_size"] = 4 * fields["hidden_size"]
        for field, value in fields.items():
            setattr(self, field, value)
        self.validate()

    def __setattr__(self, key: str, value: Any) -> None:
        key = self.attribute_map.get(key, key)
        if key in RULES:
            check_field(key, value)
        super().__setattr__(key, value)

    def validate(self) -> None:
        """Check what concerns two fields; run when built, before a model is, and before saving by transformers 5."""
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads != 0:
            raise ValueError(f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads})")
        pp_size = getattr(getattr(self, "distributed_config", None), "pp_size", None) or 1
        if pp_size > 1:
            raise ValueError(f"pp_size={pp_size}: each stage would add the learned positions; use tp_size or FSDP")

# Copyright 2026 The hf_gpt_scratch authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Hyperparameters of the GPT: each declared once, with its type, default and rule.

This file travels with every repository made by hf_gpt_scratch, so it imports nothing of that package.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


if TYPE_CHECKING:
    # The library recognises code by the text of a file and of what it imports. With this, two folders of one name
    # whose modeling files differ have two config classes, and each runs its own model. After a download that broke
    # off it looks for the files named here and no deeper, so all are named.
    from .generation_gpt_scratch import TemperatureTopKLogitsProcessor as TemperatureTopKLogitsProcessor
    from .loss_gpt_scratch import linear_cross_entropy as linear_cross_entropy
    from .modeling_gpt_scratch import GPTScratchModel as GPTScratchModel
    from .packing_gpt_scratch import prepared_for_decoding as prepared_for_decoding


# Where the Auto classes find our classes in a saved folder; the library itself would write only one of these entries.
AUTO_MAP = {
    "AutoConfig": "configuration_gpt_scratch.GPTScratchConfig",
    "AutoModel": "modeling_gpt_scratch.GPTScratchModel",
    "AutoModelForCausalLM": "modeling_gpt_scratch.GPTScratchForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gpt_scratch.GPTScratchForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gpt_scratch.GPTScratchForTokenClassification",
}


def positive(value: int | None) -> None:
    """Rule for sizes: at least 1. None is for derived sizes."""
    if value is not None and value < 1:
        raise ValueError(f"must be at least 1, got {value}")


def positive_and_finite(value: float) -> None:
    """Rule for scales: above 0, not infinite, not NaN."""
    if not 0 < value < math.inf:
        raise ValueError(f"must be above 0 and finite, got {value}")


def probability_below_one(value: float) -> None:
    """Rule for dropout: in [0, 1); at 1 nothing would be left. NaN fails the comparison and is refused too."""
    if not 0 <= value < 1:
        raise ValueError(f"must be at least 0 and below 1, got {value}")


def known_activation(value: str) -> None:
    """Rule for `hidden_act`: a name that `transformers.activations.ACT2FN` knows."""
    if value not in ACT2FN:
        raise ValueError(f"{value!r} is unknown, use one of {', '.join(sorted(ACT2FN))}")


def in_one_line(method: Callable) -> Callable:
    """Let `method` report a broken rule as a ValueError of one line; `strict` spreads it over two."""

    @functools.wraps(method)
    def wrapper(self: PreTrainedConfig, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"{type(self).__name__}: {' '.join(str(error).split())}") from None

    return wrapper


@strict
class GPTScratchConfig(PreTrainedConfig):  # trf-ignore: TRF057
    r"""
    Architecture of a GPT-2 style decoder. The defaults are GPT-2 124M.

    The names of GPT-2 (`n_embd`, `n_layer`, `n_head`, `n_positions`, `n_ctx`, `n_inner`) and of the tutorial
    (`emb_dim`, `n_layers`, `n_heads`, `context_length`, `drop_rate`) are accepted for the same fields.

    Args:
        vocab_size (`int`, *optional*, defaults to 50257):
            Number of token ids.
        max_position_embeddings (`int`, *optional*, defaults to 1024):
            Number of learned positions: the longest context in tokens.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the residual stream, a multiple of `num_attention_heads`.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of decoder layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads of a layer.
        intermediate_size (`int`, *optional*, defaults to 4 * `hidden_size`):
            Width of the MLP.
        hidden_act (`str`, *optional*, defaults to `"gelu_pytorch_tanh"`):
            Activation of the MLP; the default is GPT-2's GELU in tanh form, computed by one PyTorch kernel.
        dropout (`float`, *optional*, defaults to 0.1):
            Probability of zeroing an element of the embeddings, the attention weights and each residual branch.
        qkv_bias (`bool`, *optional*, defaults to `True`):
            Whether the query, key and value projections have a bias.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Added to the variance in each LayerNorm.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of fresh weights; residual projections get it divided by sqrt(2 * layers).
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the language-model head is the token embedding.
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether to return the key/value cache.
        bos_token_id, eos_token_id, pad_token_id (`int`, *optional*, default to 50256):
            `<|endoftext|>` serves as all three.

    Raises:
        ValueError: a value breaks its rule; one line names field, value and rule.

    Example:

    ```python
    >>> config = GPTScratchConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=6)
    >>> config.n_embd, config.intermediate_size
    (384, 1536)
    ```
    """

    model_type = "gpt_scratch"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {
        # GPT-2
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "n_ctx": "max_position_embeddings",
        "n_inner": "intermediate_size",
        # tutorial
        "emb_dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "context_length": "max_position_embeddings",
        "drop_rate": "dropout",
    }
    # No base_model_pp_plan: a pipeline would add the learned positions again on every stage.
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = validated_field(positive, default=50257)
    max_position_embeddings: int = validated_field(positive, default=1024)
    hidden_size: int = validated_field(positive, default=768)
    num_hidden_layers: int = validated_field(positive, default=12)
    num_attention_heads: int = validated_field(positive, default=12)
    intermediate_size: int | None = validated_field(positive, default=None)
    hidden_act: str = validated_field(known_activation, default="gelu_pytorch_tanh")
    dropout: float | int = validated_field(probability_below_one, default=0.1)
    qkv_bias: bool = True
    layer_norm_eps: float | int = validated_field(positive_and_finite, default=1e-5)
    initializer_range: float | int = validated_field(positive_and_finite, default=0.02)
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = 50256

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size

    def __setattr__(self, key: str, value: Any) -> None:
        # `strict` checks the name it is given; an alias is sent round again under its canonical name to be checked.
        if key in type(self).attribute_map:
            setattr(self, type(self).attribute_map[key], value)
        else:
            super().__setattr__(key, value)

    def validate_architecture(self) -> None:
        """Check what concerns two fields or the use of the model; run after construction, before building a model
        and before saving.
        """
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        pp_size = getattr(getattr(self, "distributed_config", None), "pp_size", None) or 1
        if pp_size > 1:
            raise ValueError(
                f"pp_size={pp_size}: pipeline stages would each add the learned positions again; use tensor "
                "parallelism (tp_size) or FSDP for this model"
            )


def refusing_contradicting_names(method: Callable) -> Callable:
    """Let `__init__` refuse one field given under two names with two values; the last one would win in silence."""

    @functools.wraps(method)
    def wrapper(self: PreTrainedConfig, **kwargs: Any) -> None:
        given: dict[str, tuple[str, Any]] = {}
        for name, value in kwargs.items():
            field = self.attribute_map.get(name, name)
            other_name, other_value = given.setdefault(field, (name, value))
            if other_name != name and other_value != value:
                raise ValueError(f"{name}={value} contradicts {other_name}={other_value}: both are {field}")
        method(self, **kwargs)

    return wrapper


GPTScratchConfig.__init__ = refusing_contradicting_names(in_one_line(GPTScratchConfig.__init__))
GPTScratchConfig.__setattr__ = in_one_line(GPTScratchConfig.__setattr__)
GPTScratchConfig.validate = in_one_line(GPTScratchConfig.validate)

__all__ = ["AUTO_MAP", "GPTScratchConfig"]

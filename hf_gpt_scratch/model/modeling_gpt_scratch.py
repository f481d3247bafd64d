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
"""A GPT-2 style decoder, written to be read from top to bottom.

Shapes are given in these letters: B batch, T query tokens, S key tokens (cached ones included), C hidden_size,
H attention heads, D head size (C = H * D), V vocab_size.

This file travels with every repository made by hf_gpt_scratch, so it imports nothing of that package.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .configuration_gpt_scratch import AUTO_MAP, GPTScratchConfig
from .generation_gpt_scratch import (
    GPTScratchGenerationMixin,
    SeededDrawLogitsProcessor,
    TemperatureTopKLogitsProcessor,
)
from .loss_gpt_scratch import loss_without_logits


# TRF057 of the library's linter asks for @auto_docstring, which would put texts about "a None model" over ours.


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention in plain PyTorch: the reference of the other implementations.

    query [B, H, T, D], key and value [B, H, S, D], additive attention_mask [B, 1, T, S] -> output [B, T, H, D] and
    weights [B, H, T, S].
    """
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


class GPTScratchAttention(nn.Module):
    """Causal multi-head self-attention with separate q, k, v and o projections."""

    def __init__(self, config: GPTScratchConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj.is_residual_projection = True

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        # -1 instead of the number of heads: under tensor parallelism each device holds some of them.
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)  # [B, H, T, D]
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)  # [B, H, S, D]

        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.config.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()  # [B, T, H, D] -> [B, T, C]
        return self.o_proj(attn_output), attn_weights


class GPTScratchMLP(nn.Module):
    """Position-wise feed-forward: C -> 4C -> C with the tanh form of GELU (arXiv:1606.08415, section 2)."""

    def __init__(self, config: GPTScratchConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.down_proj.is_residual_projection = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class GPTScratchDecoderLayer(GradientCheckpointingLayer):
    """Attention, then MLP; each reads a normalised copy of the residual stream and adds to it (pre-LayerNorm)."""

    def __init__(self, config: GPTScratchConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GPTScratchAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GPTScratchMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.self_attn(self.input_layernorm(hidden_states), attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + self.dropout(attn_output)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class GPTScratchPreTrainedModel(PreTrainedModel):  # trf-ignore: TRF057
    """What all our models share: initialisation, saving, and what the library may do with them."""

    config: GPTScratchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTScratchDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPTScratchDecoderLayer, "attentions": GPTScratchAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw normal(0, initializer_range); residual projections get GPT-2's 1/sqrt(number of residual additions).

        The flag sits on the Linear itself: for custom code the library never calls this for a module without
        parameters of its own, such as the attention or the MLP around it.
        """
        super()._init_weights(module)
        if getattr(module, "is_residual_projection", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as any transformers model, with an `auto_map` that names all our classes and the code beside it."""
        if self.is_remote_code():
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)


def positions_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Count positions [B, S] over the real tokens of attention_mask [B, S]: padding does not shift the text."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


class GPTScratchModel(GPTScratchPreTrainedModel):  # trf-ignore: TRF057
    """Token and position embeddings, the decoder layers and the final LayerNorm: token ids -> hidden states."""

    def __init__(self, config: GPTScratchConfig) -> None:
        super().__init__(config)
        config.validate()  # fields may have been set since it was built, and the library may have added some
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            [GPTScratchDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def refuse_beyond_context(self, position_ids: torch.Tensor, num_slots: int | torch.Tensor) -> None:
        """Raise if a position has no embedding. Only on CPU are positions read, since elsewhere that would wait for
        the device; there the slots of a row stand for them, of which padding takes some.
        """
        if position_ids.device.type == "cpu" and not is_tracing(position_ids):
            longest = int(position_ids.max()) + 1 if position_ids.numel() > 0 else 0
        else:
            longest = num_slots if isinstance(num_slots, int) else 0
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"{longest} positions are asked for, but the context of this model ends at "
                f"max_position_embeddings={self.config.max_position_embeddings}; shorten the input or max_new_tokens"
            )

    # Fills use_cache from the config; collects output_hidden_states and output_attentions from the modules.
    # trf-ignore: TRF057
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Compute hidden states [B, T, C] from input_ids [B, T] or inputs_embeds [B, T, C].

        attention_mask [B, S] is 1 at real tokens. position_ids [B, T] default to counting the real tokens; given
        ones that start again within a row, without a mask, mark packed sequences, which do not see each other.
        """
        # `cache` is what transformers calls past_key_values from 5.24 on. A paged one is the attention's own business.
        if isinstance(kwargs.get("cache"), Cache):
            past_key_values = kwargs.pop("cache")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # [B, T, C]

        # The mask comes before the cache and the default positions: the library looks for packed sequences only
        # where there is no cache, and only in positions that the caller gave.
        causal_mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        # A packed row may be longer than the context, so its length says nothing about its positions.
        is_2d_mask = attention_mask is not None and attention_mask.ndim == 2
        may_be_packed = position_ids is not None and past_key_values is None and not is_2d_mask
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        num_tokens = inputs_embeds.shape[1]
        num_cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        slots = torch.arange(num_tokens, device=inputs_embeds.device) + num_cached
        if position_ids is None:
            position_ids = positions_from_mask(attention_mask)[:, slots] if is_2d_mask else slots.unsqueeze(0)
        self.refuse_beyond_context(position_ids, 0 if may_be_packed else num_cached + num_tokens)

        hidden_states = self.dropout(inputs_embeds + self.embed_positions(position_ids))
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(
                hidden_states,
                attention_mask=causal_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class GPTScratchForCausalLM(GPTScratchPreTrainedModel, GPTScratchGenerationMixin):  # trf-ignore: TRF057
    """The language model: hidden states -> a score for each token of the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPTScratchConfig) -> None:
        super().__init__(config)
        self.model = GPTScratchModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    # trf-ignore: TRF057
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Compute logits [B, T, V], and with labels the mean cross-entropy in nats per token.

        labels [B, T] are the input_ids themselves: the loss shifts them by one and skips -100. `shift_labels` [B, T]
        are labels that are shifted already. `num_items_in_batch` makes the loss the sum over tokens divided by it.
        `logits_to_keep` > 0 computes only the logits of the last so many tokens. `skip_logits=True`, with labels,
        computes the same loss in less memory and time and leaves `logits` None; with `Trainer`, let the data collator
        put it into the batches.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(hidden_states) if not skip_logits else None
        loss = None
        if skip_logits:
            loss = loss_without_logits(self, hidden_states, labels, **kwargs)
        elif labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class GPTScratchForSequenceClassification(GenericForSequenceClassification, GPTScratchPreTrainedModel):
    """One label for a text, read from the last token that is not padding."""

    # The mixin's own __init__ builds the base model through AutoModel, which refuses remote code.
    def __init__(self, config: GPTScratchConfig) -> None:
        GPTScratchPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = GPTScratchModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class GPTScratchForTokenClassification(GenericForTokenClassification, GPTScratchPreTrainedModel):
    """One label for each token."""

    # As above: not the mixin's __init__.
    def __init__(self, config: GPTScratchConfig) -> None:
        GPTScratchPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = GPTScratchModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


__all__ = [
    "GPTScratchForCausalLM",
    "GPTScratchForSequenceClassification",
    "GPTScratchForTokenClassification",
    "GPTScratchModel",
    "GPTScratchPreTrainedModel",
    "SeededDrawLogitsProcessor",
    "TemperatureTopKLogitsProcessor",
]

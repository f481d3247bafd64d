# Copyright 2026 The hf_gpt_scratch authors. SPDX-License-Identifier: Apache-2.0  # trf-ignore: TRF028
"""A GPT-2 style decoder, written to be read from top to bottom, for every transformers from 4.40 on.

Shapes are given in these letters: B batch, T query tokens, S key tokens (cached ones included), C hidden_size,
H attention heads, D head size (C = H * D), V vocab_size, L labels. It is shipped with every repository.
"""

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, modeling_outputs, modeling_utils
from transformers.activations import ACT2FN
from transformers.models.auto import modeling_auto

from .configuration_gpt_scratch import AUTO_MAP, NORMS, VERSION, GPTScratchFields
from .generation_gpt_scratch import CACHE, GPTScratchPastContext
from .generation_gpt_scratch import SeededDrawLogitsProcessor as SeededDrawLogitsProcessor
from .generation_gpt_scratch import TemperatureTopKLogitsProcessor as TemperatureTopKLogitsProcessor
from .loss_gpt_scratch import causal_lm_loss, chunked_causal_lm_loss, classification_loss


try:
    from transformers import masking_utils
except ImportError:  # before 4.53
    masking_utils = None
try:
    from transformers.modeling_layers import GradientCheckpointingLayer
except ImportError:  # before 4.52

    class GradientCheckpointingLayer(nn.Module):
        """A layer that is computed again in the backward pass where `gradient_checkpointing` is set."""

        gradient_checkpointing = False

        def __call__(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            call = functools.partial(super().__call__, **kwargs)
            is_set = self.gradient_checkpointing and self.training
            return self._gradient_checkpointing_func(call, hidden_states) if is_set else call(hidden_states)


# The library's table also has what others register in it. Before 4.48 there is none, and eager attention for all.
ALL_ATTENTION_FUNCTIONS = getattr(modeling_utils, "ALL_ATTENTION_FUNCTIONS", {})
TAKES_SLOTS = VERSION < (5, 4)  # then it wants to be told the places that the tokens take in a static cache

# It might decode nonsense in silence where a newer library has renamed what it is handed by name.
for owner, function, *names in [
    (GenerationMixin, "prepare_inputs_for_generation", "inputs_embeds", CACHE),
    (Cache, "update", "key_states", "value_states", "layer_idx"),
    (Cache, "get_seq_length", "self"),
    *([(masking_utils, "create_causal_mask", "attention_mask", "position_ids", CACHE)] if masking_utils else []),
]:
    known = inspect.signature(getattr(owner, function)).parameters if hasattr(owner, function) else {}
    if renamed := [name for name in names if name not in known and "args" not in known]:
        raise ImportError(
            f"transformers {transformers.__version__} has changed {function}() ({renamed[0]!r}), which this model's "
            "code relies on: update it (push_to_hub.py --update_code), or pip install 'transformers<=5.24'"
        )


class GPTScratchConfig(GPTScratchFields):  # trf-ignore: TRF057
    """The configuration, of this file: the library takes two folders for one whose configs are of one class."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention in plain PyTorch: the reference of the other implementations.

    query [B, H, T, D], key, value [B, H, S, D], added mask [B, 1, T, S] -> output [B, T, H, D], weights [B, H, T, S].
    """
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


def causal_mask(
    config: GPTScratchConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    position_ids: torch.Tensor | None,
    slots: torch.Tensor,
) -> Any:
    """Make what the attention function takes as a mask; `slots` [T] are the places of the tokens among the keys."""
    if masking_utils is not None:
        more = {CACHE: cache, "position_ids": position_ids} | ({"cache_position": slots} if TAKES_SLOTS else {})
        return masking_utils.create_causal_mask(config, inputs_embeds, attention_mask, **more)
    if attention_mask is not None and attention_mask.ndim == 4:
        return attention_mask
    size_of_static_cache = getattr(cache, "get_max_cache_shape", getattr(cache, "get_max_length", lambda: None))()
    keys = torch.arange(size_of_static_cache or int(slots[-1]) + 1, device=slots.device)  # [S]
    is_seen = (keys <= slots[:, None])[None, None]  # [1, 1, T, S]
    if attention_mask is not None:
        is_real = nn.functional.pad(attention_mask.bool(), (0, len(keys) - attention_mask.shape[1]), value=True)
        is_seen = (is_seen & is_real[:, None, None, :]) | (keys == slots[:, None])  # padding sees itself: no NaN
    elif position_ids is not None and cache is None:
        text = nn.functional.pad(position_ids[:, 1:] != position_ids[:, :-1] + 1, (1, 0)).cumsum(-1)  # [B, T]
        is_seen = is_seen & (text[:, None, :, None] == text[:, None, None, :])
    lowest = torch.finfo(inputs_embeds.dtype).min
    return torch.zeros_like(is_seen, dtype=inputs_embeds.dtype).masked_fill(~is_seen, lowest)


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
        self, hidden_states: torch.Tensor, attention_mask: Any, past_key_values: Cache | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)  # -1: tensor parallelism gives a device some of the heads
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)  # [B, H, T, D]
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        if past_key_values is not None:  # -> [B, H, S, D]
            place = [{"cache_position": kwargs["cache_position"]}] if TAKES_SLOTS else []
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx, *place)
        elif CACHE == "cache" and (paged := kwargs.pop("cache", None)) is not None:  # of continuous batching
            key_states, value_states = paged.update(key_states, value_states, self.layer_idx, kwargs=kwargs)
        # trf-ignore: TRF051
        elif VERSION < (5, 0) and "cache" in kwargs and "paged" not in self.config._attn_implementation:
            raise ValueError('continuous batching needs attn_implementation="sdpa_paged" with this transformers')
        attend = eager_attention_forward
        if hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):  # the library looks for either text, to allow a switch
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        elif self.config._attn_implementation in ALL_ATTENTION_FUNCTIONS:  # trf-ignore: TRF051
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        options = {"dropout": self.config.dropout if self.training else 0.0, "scaling": self.scaling} | kwargs
        attn_output, attn_weights = attend(self, query_states, key_states, value_states, attention_mask, **options)
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
    """Attention, then MLP; each reads a normalized copy of the residual stream and adds to it (pre-LayerNorm)."""

    def __init__(self, config: GPTScratchConfig, layer_idx: int) -> None:
        super().__init__()
        norm = getattr(nn, NORMS[config.norm_type])
        self.input_layernorm = norm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GPTScratchAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GPTScratchMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, attentions: list | None = None, **kwargs: Any) -> torch.Tensor:
        attn_output, attn_weights = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        if attentions is not None and attn_weights is not None:
            attentions.append(attn_weights)
        hidden_states = hidden_states + self.dropout(attn_output)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class GPTScratchPreTrainedModel(PreTrainedModel):  # trf-ignore: TRF057
    """The base of all models: initialization, saving, and what the library may do with them."""

    config_class = GPTScratchConfig
    base_model_prefix = "model"
    code = {path.name: path.read_bytes() for path in Path(__file__).parent.glob("*_gpt_scratch.py")}
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTScratchDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = _supports_attention_backend = _can_compile_fullgraph = True
    _supports_cache_class = _supports_static_cache = True  # asked for before 4.56
    _supports_flash_attn = _supports_flex_attn = masking_utils is not None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:  # trf-ignore: TRF018
        """Draw normal(0, initializer_range), residual projections again by GPT-2's 1/sqrt(number of additions)."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = self.config.initializer_range
            nn.init.normal_(module.weight, std=std)
            if hasattr(module, "is_residual_projection"):  # flagged: the library does not ask for the MLP around it
                nn.init.normal_(module.weight, std=std / math.sqrt(2 * self.config.num_hidden_layers))
        elif hasattr(module, "normalized_shape"):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.embed_tokens = value

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as any transformers model, with an `auto_map` that names all our classes and the code beside it."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        for path in map(Path(save_directory).joinpath, self.code):
            if path.exists():  # before 5.10 it may be that of another folder of the same name
                path.write_bytes(self.code[path.name])


def tuple_on_request(forward: Callable) -> Callable:
    """Let a `forward` that returns outputs return a tuple for `return_dict=False`."""

    @functools.wraps(forward)
    def wrapper(self: PreTrainedModel, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        outputs = forward(self, *args, **kwargs)
        return outputs if (self.config.return_dict if return_dict is None else return_dict) else outputs.to_tuple()

    return wrapper


class GPTScratchModel(GPTScratchPreTrainedModel):  # trf-ignore: TRF057
    """Token and position embeddings, the decoder layers and the final normalization: token ids -> hidden states."""

    def __init__(self, config: GPTScratchConfig) -> None:
        super().__init__(config)
        config.validate()  # fields may have been set since it was built, and the library may have added some
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(GPTScratchDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = getattr(nn, NORMS[config.norm_type])(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def refuse_beyond_context(self, position_ids: torch.Tensor, num_slots: int | torch.Tensor) -> None:
        """Raise if a position has no embedding; where reading one would wait for a device, judge by a row's slots."""
        longest = num_slots if isinstance(num_slots, int) else 0
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(position_ids) is not torch.Tensor
        if position_ids.device.type == "cpu" and not is_traced and position_ids.numel() > 0:
            longest = int(position_ids.max()) + 1
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"{longest} positions are asked for, but the context of this model ends at "
                f"max_position_embeddings={self.config.max_position_embeddings}; shorten the input or max_new_tokens"
            )

    @tuple_on_request
    def forward(  # trf-ignore: TRF057
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> modeling_outputs.BaseModelOutputWithPast:
        """Compute hidden states [B, T, C] from input_ids [B, T] or inputs_embeds [B, T, C].

        attention_mask [B, S] is 1 at real tokens. position_ids [B, T] default to counting the real tokens; given
        ones that start again within a row, without a mask, mark packed sequences, which do not see each other.
        """
        if isinstance(kwargs.get("cache"), Cache):  # a paged one is the attention's own business
            past_key_values = kwargs.pop("cache")
        inputs, num_dimensions = (input_ids, 2) if inputs_embeds is None else (inputs_embeds, 3)
        if (input_ids is None) == (inputs_embeds is None) or inputs.ndim != num_dimensions:
            raise ValueError("give exactly one of input_ids [batch, tokens] and inputs_embeds [batch, tokens, width]")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # [B, T, C]
        num_tokens = inputs_embeds.shape[1]
        num_cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        is_2d_mask = attention_mask is not None and attention_mask.ndim == 2
        if is_2d_mask and isinstance(num_cached, int) and attention_mask.shape[1] < num_cached + num_tokens:
            lengths = f"{attention_mask.shape[1]} of {num_cached} cached + {num_tokens} new tokens"
            raise ValueError(f"attention_mask covers {lengths}: lengthen it, or leave what is cached out of input_ids")
        slots = torch.arange(num_tokens, device=inputs_embeds.device) + num_cached
        # Before the cache and the default positions: packed sequences are looked for only in what the caller gave.
        mask = causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids, slots)
        # A packed row may be longer than the context, so its length says nothing about its positions.
        may_be_packed = position_ids is not None and past_key_values is None and not is_2d_mask
        if position_ids is None and is_2d_mask:  # padding does not shift a text
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, slots]
        elif position_ids is None:
            position_ids = slots.unsqueeze(0)
        self.refuse_beyond_context(position_ids, 0 if may_be_packed else num_cached + num_tokens)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and use_cache and not (self.gradient_checkpointing and self.training):
            past_key_values = DynamicCache()

        asked = [(name, kwargs.pop(name, None)) for name in ("output_hidden_states", "output_attentions")]
        is_asked = (getattr(self.config, name) if value is None else value for name, value in asked)
        layer_inputs, attentions = ([] if one else None for one in is_asked)
        kwargs |= {"attention_mask": mask, "past_key_values": past_key_values, "position_ids": position_ids}
        kwargs |= {"attentions": attentions} | ({"cache_position": slots} if TAKES_SLOTS else {})
        # A later stage of a pipeline is given hidden states: its first layers are left out, and so are positions.
        is_later = input_ids is None and isinstance(self.layers[0], nn.Identity)
        hidden_states = inputs_embeds if is_later else self.dropout(inputs_embeds + self.embed_positions(position_ids))
        for layer in self.layers:
            if layer_inputs is not None:
                layer_inputs.append(hidden_states)
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.norm(hidden_states)
        collected = None if layer_inputs is None else (*layer_inputs, hidden_states)
        attentions = None if attentions is None else tuple(attentions)
        outputs = {"hidden_states": collected, "attentions": attentions, CACHE: past_key_values if use_cache else None}
        return modeling_outputs.BaseModelOutputWithPast(last_hidden_state=hidden_states, **outputs)


# trf-ignore: TRF004
class GPTScratchForCausalLM(GPTScratchPreTrainedModel, GPTScratchPastContext, GenerationMixin):  # trf-ignore: TRF057
    """The language model: hidden states -> a score for each token of the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output" if VERSION >= (5, 1) else "colwise_rep"}  # one style, two names
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    loss_function = staticmethod(causal_lm_loss)
    chunked_loss_function = staticmethod(chunked_causal_lm_loss)

    def __init__(self, config: GPTScratchConfig) -> None:
        super().__init__(config)
        self.model = GPTScratchModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the head also where the library forgets it: 5.3 does. From 5.4 on it spares a head with other values."""
        super().tie_weights(*args, **kwargs)
        if self.config.tie_word_embeddings and VERSION < (5, 4):
            self.lm_head.weight = self.model.embed_tokens.weight

    @tuple_on_request
    def forward(  # trf-ignore: TRF057
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> modeling_outputs.CausalLMOutputWithPast:
        """Compute logits [B, T, V], and with labels the mean cross-entropy in nats per token.

        labels [B, T] are the input_ids, which `causal_lm_loss` shifts; its other arguments are passed on. Logits are
        computed of the last `logits_to_keep` tokens, 0 for all. `skip_logits=True` computes the loss in less memory
        and leaves them None; with `Trainer`, let the data collator put it into the batches.
        """
        kwargs |= {"past_key_values": past_key_values, "inputs_embeds": inputs_embeds, "use_cache": use_cache}
        outputs = dict(self.model(input_ids, attention_mask, position_ids, return_dict=True, **kwargs))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states, logits = outputs.pop("last_hidden_state")[:, kept], None
        has_labels = labels is not None or kwargs.get("shift_labels") is not None
        if skip_logits and not has_labels:
            raise ValueError("skip_logits=True leaves nothing to compute: give labels, or leave it out to get logits")
        kwargs |= {"labels": labels, "vocab_size": self.config.vocab_size}
        if skip_logits and self.loss_function is causal_lm_loss:
            loss = self.chunked_loss_function(self.lm_head, hidden_states, **kwargs)
        else:
            logits = self.lm_head(hidden_states)
            loss = self.loss_function(logits=logits, **kwargs) if has_labels else None
            logits = None if skip_logits else logits
        return modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits, **outputs)


class GPTScratchClassifier(GPTScratchPreTrainedModel):  # trf-ignore: TRF057
    """A score for each label: of each token, or of a text, read from its last token that is not padding."""

    is_for_tokens = False

    def __init__(self, config: GPTScratchConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GPTScratchModel(config)
        self.dropout = nn.Dropout(config.dropout if self.is_for_tokens else 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=self.is_for_tokens)
        self.post_init()

    @tuple_on_request
    def forward(  # trf-ignore: TRF057
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> modeling_outputs.ModelOutput:
        """Compute logits [B, T, L] of tokens or [B, L] of texts, and with labels their `classification_loss`."""
        kwargs |= {"past_key_values": past_key_values, "inputs_embeds": inputs_embeds}
        outputs = dict(self.model(input_ids, attention_mask, position_ids, return_dict=True, **kwargs))
        logits = self.score(self.dropout(outputs.pop("last_hidden_state")))
        padding, last = self.config.pad_token_id, -1
        if not self.is_for_tokens:
            if padding is None and len(logits) > 1:
                raise ValueError("a batch of texts needs config.pad_token_id, to tell where each one ends")
            if padding is not None and input_ids is not None:
                last = (torch.arange(input_ids.shape[1], device=logits.device) * (input_ids != padding)).argmax(-1)
            logits = logits[torch.arange(len(logits), device=logits.device), last]
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        if not self.is_for_tokens:
            return modeling_outputs.SequenceClassifierOutputWithPast(loss=loss, logits=logits, **outputs)
        outputs.pop(CACHE, None)
        return modeling_outputs.TokenClassifierOutput(loss=loss, logits=logits, **outputs)


class GPTScratchForSequenceClassification(GPTScratchClassifier):  # trf-ignore: TRF057
    """One label for a text."""


class GPTScratchForTokenClassification(GPTScratchClassifier):  # trf-ignore: TRF057
    """One label for each token."""

    is_for_tokens = True


for auto_class, place in AUTO_MAP.items():
    globals()[place.partition(".")[2]].register_for_auto_class(auto_class)
# Trainer's label smoothing shifts the labels of models in this table only: others would learn to repeat their input.
getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})["gpt_scratch"] = "GPTScratchForCausalLM"

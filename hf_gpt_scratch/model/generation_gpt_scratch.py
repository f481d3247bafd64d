# Copyright 2026 The hf_gpt_scratch authors. SPDX-License-Identifier: Apache-2.0
"""Decoding: temperature and top-k, repeatable draws, texts beyond the context. Shipped with every repository."""

import functools
import inspect
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, LogitsProcessor


PREPARED_BY_LIBRARY = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
# The name under which the library hands over the cache, and wants it back; "cache" from 5.24 on.
CACHE = "cache" if "cache" in PREPARED_BY_LIBRARY else "past_key_values"


class TemperatureTopKLogitsProcessor(LogitsProcessor):
    r"""Divide the scores by a temperature and keep the `top_k` best tokens of each row.

    `generate()` adds its own temperature and top-k when it samples, so switch those off beside this one:

    ```python
    >>> processor = TemperatureTopKLogitsProcessor(temperature=1.4, top_k=25)
    >>> model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, logits_processor=[processor])
    ```

    Args:
        temperature (`float`): Above 1 flattens the distribution, below 1 sharpens it. Below the resolution of float32
            (1.2e-7) only the best token is left: greedy decoding.
        top_k (`int`, *optional*): Tokens to keep in each row, with all that tie with the last; None and 0 keep all.

    Raises:
        ValueError: `temperature` is negative, infinite or NaN, or `top_k` is negative or no integer.
    """

    supports_continuous_batching = True

    def __init__(self, temperature: float = 1.0, top_k: int | None = None) -> None:
        if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be a number, at least 0 and finite, got {temperature!r}; 0 is greedy")
        if isinstance(top_k, bool) or not isinstance(top_k, (Integral, type(None))) or (top_k or 0) < 0:
            raise ValueError(f"top_k must be an integer of at least 0 or None, got {top_k!r}; 0 and None keep all")
        self.temperature = float(temperature)
        self.top_k = int(top_k or 0)
        self.greedy = temperature < torch.finfo(torch.float32).eps

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return new scores [..., vocab_size] in the dtype of `scores`; `scores` itself stays as it is."""
        if self.greedy:
            best = scores.argmax(dim=-1, keepdim=True)
            return torch.full_like(scores, -math.inf).scatter(-1, best, scores.gather(-1, best))
        if 0 < self.top_k < scores.shape[-1]:
            kth_best = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < kth_best, -math.inf)
        if scores.dtype in (torch.float16, torch.bfloat16):
            # Softmax ignores a shift of the row; with the best score at 0 no quotient overflows half precision.
            scores = scores - scores.amax(dim=-1, keepdim=True)
        return scores / self.temperature


class SeededDrawLogitsProcessor(LogitsProcessor):
    r"""Draw the next token of each row with generators of its own, and leave only the drawn tokens.

    What `generate()` then has to do is greedy, so the global random state is neither used nor changed. A row draws the
    same tokens alone as in a batch. Put it last:

    ```python
    >>> processors = [TemperatureTopKLogitsProcessor(temperature=1.4, top_k=25), SeededDrawLogitsProcessor(123)]
    >>> model.generate(**inputs, do_sample=False, logits_processor=processors)
    ```

    Args:
        seed (`int`, `Sequence[int]` or `torch.Generator`): A seed for each row; one integer stands for seed, seed + 1,
            ... A row draws what `torch.multinomial` draws after `torch.manual_seed` with its seed, and counts on, so
            make a new processor for each call of `generate()`. A generator, on the scores' device, draws for all rows.

    Raises:
        ValueError: `seed` is none of these; when called, that there are more or fewer rows than seeds.
    """

    def __init__(self, seed: int | Sequence[int] | torch.Generator) -> None:
        seeds = seed if isinstance(seed, (list, tuple, range)) else [seed]
        are_integers = all(isinstance(one, int) and not isinstance(one, bool) for one in seeds)
        if not (are_integers or isinstance(seed, torch.Generator)):
            raise ValueError(f"seed must be an integer, one for each row, or a torch.Generator, got {seed!r}")
        self.seed = seed
        self.generators: list[torch.Generator] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [B, vocab_size] that are 0 at the drawn token of each row and minus infinity elsewhere."""
        probabilities = scores.softmax(dim=-1)
        if isinstance(self.seed, torch.Generator):
            drawn = torch.multinomial(probabilities, 1, generator=self.seed)
        else:
            seeds = range(self.seed, self.seed + len(scores)) if isinstance(self.seed, int) else self.seed
            if len(seeds) != len(scores):
                raise ValueError(f"there are {len(seeds)} seeds for {len(scores)} rows: give one each, or one integer")
            self.generators = self.generators or [torch.Generator(scores.device).manual_seed(seed) for seed in seeds]
            pairs = zip(probabilities, self.generators, strict=True)
            drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in pairs])
        return torch.full_like(scores, -math.inf).scatter(-1, drawn, 0.0)


def multiply_by_onednn(linear: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
    """Compute `linear(hidden_states)` with oneDNN where all tensors are plain float32 ones on a CPU."""
    tensors = [one for one in (hidden_states, linear.weight, linear.bias) if one is not None]
    kinds = {(type(one), one.device.type, one.dtype, one.layout) for one in tensors}
    plain = {(kind, "cpu", torch.float32, torch.strided) for kind in (torch.Tensor, nn.Parameter)}
    is_plain = kinds <= plain and linear.weight.is_contiguous() and torch.backends.mkldnn.is_available()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not is_plain:
        return nn.Linear.forward(linear, hidden_states)
    return nn.functional.linear(hidden_states.to_mkldnn(), linear.weight, linear.bias).to_dense()


class GPTScratchPastContext(GenerationMixin):
    """`generate(..., past_context="exact")` or `"rolling"`: go on past the context, which is refused without it.

    - "exact" conditions every new token on the last `max_position_embeddings` tokens, as if the text were cropped at
      every step. Positions shift at every step, so nothing can be cached beyond the context.
    - "rolling" crops to half a context when the context is full, and fills it again with the cache: a token is
      conditioned on between half a context and a whole one. Faster, and for prompts of one length.
    """

    @functools.wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the library does; on a CPU with oneDNN, which reads large weights faster than `nn.Linear`."""
        configs = kwargs, vars(kwargs.get("generation_config") or self.generation_config)
        is_compiled = any(one.get("compile_config") for one in configs)  # again at each call, if layers are changed
        can = self.device.type == "cpu" and not is_compiled and hasattr(torch, "get_autocast_dtype")
        linears = [one for one in self.modules() if can and type(one) is nn.Linear and "forward" not in vars(one)]
        large = [one for one in linears if one.weight.numel() >= 2**19]  # below, handing over costs more than it gains
        for linear in large:
            linear.forward = functools.partial(multiply_by_onednn, linear)
        try:
            return super().generate(*args, **kwargs)
        finally:
            for linear in large:
                vars(linear).pop("forward", None)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        past_context: str | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Choose tokens [B, T] and cache of the next forward pass; refuse what past_context does not go with."""
        kwargs["attention_mask"] = attention_mask
        cache, window = past_key_values if cache is None else cache, self.config.max_position_embeddings
        if past_context is not None:
            refuse_past_context(past_context, cache, inputs_embeds, **kwargs)
        if past_context is None or input_ids.shape[1] <= window:
            return self._next_inputs(input_ids, inputs_embeds=inputs_embeds, **kwargs, **{CACHE: cache})
        if past_context == "exact":
            cache, kwargs["use_cache"] = None, False
        else:
            mask = kwargs.pop("attention_mask", None)  # before 5.20 generate() makes one of ones
            if mask is not None and not bool(mask.all()):
                raise ValueError('past_context="rolling" takes prompts of one length: use "exact" for padded ones')
            if cache is None or cache.get_seq_length() in (0, window):
                window, cache = max(1, window // 2), getattr(cache, "empty_like", DynamicCache)()
            else:
                window = 1
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, -window:]
        kwargs = {key: kwargs[key] for key in kwargs.keys() - {"position_ids", "next_sequence_length"}}
        if "cache_position" in kwargs:  # before 5.4
            num_cached = cache.get_seq_length() if cache is not None else 0
            kwargs["cache_position"] = torch.arange(window, device=input_ids.device) + num_cached
        return self._next_inputs(input_ids[:, -window:], **kwargs, **{CACHE: cache})

    def _next_inputs(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """Let the library leave out what is cached, our duty before 4.46; PEFT seeks the cache by forward's name."""
        if "attention_mask" in PREPARED_BY_LIBRARY:
            inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
            return inputs | ({"past_key_values": inputs.pop(CACHE)} if CACHE in inputs else {})
        cache, inputs_embeds = kwargs["past_key_values"], kwargs.pop("inputs_embeds", None)
        num_cached = cache.get_seq_length() if cache is not None else 0
        if inputs_embeds is not None and num_cached == 0:
            return kwargs | {"inputs_embeds": inputs_embeds}
        # Behind embeddings the ids begin with the first new token, so that there are fewer of them than cached ones.
        first = num_cached if input_ids.shape[1] > num_cached else -1
        return kwargs | {"input_ids": input_ids[:, first:]}


def refuse_past_context(mode: str, cache: Cache | None, inputs_embeds: torch.Tensor | None, **kwargs: Any) -> None:
    """Raise ValueError for what cannot be done past the context."""
    if mode not in ("exact", "rolling"):
        raise ValueError(f'past_context must be "exact" or "rolling", got {mode!r}')
    if inputs_embeds is not None:
        raise ValueError("past_context needs input_ids: embeddings cannot be cropped and embedded again")
    if getattr(cache, "is_compileable", False):
        raise ValueError("past_context does not go with a static cache: leave out cache_implementation")
    if mode == "rolling" and kwargs.get("use_cache") is False:
        raise ValueError('past_context="rolling" needs the cache: leave use_cache on, or use "exact"')
    if not kwargs.get("is_first_iteration") and kwargs.get("next_sequence_length") not in (None, 1):
        raise ValueError("past_context does not go with assisted or prompt-lookup decoding: leave one of them out")

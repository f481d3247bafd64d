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
"""Decoding beyond what `generate()` has: one processor for temperature and top-k, repeatable draws, texts longer than
the context. It is shipped with every repository.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessor

from .packing_gpt_scratch import grow_in_place, prepared_for_decoding


class TemperatureTopKLogitsProcessor(LogitsProcessor):
    r"""
    Divide the scores by a temperature and keep the `top_k` best tokens of each row.

    `generate()` adds its own temperature and top-k when it samples, so switch those off beside this one:

    ```python
    >>> processor = TemperatureTopKLogitsProcessor(temperature=1.4, top_k=25)
    >>> model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, logits_processor=[processor])
    ```

    Args:
        temperature (`float`, *optional*, defaults to 1.0):
            Above 1 flattens the distribution, below 1 sharpens it. 0, and anything below the resolution of float32
            (1.2e-7), leaves only the best token: greedy decoding, whether or not `generate()` samples.
        top_k (`int`, *optional*):
            Number of tokens to keep in each row; tokens that tie with the k-th are kept too. None and 0 keep all, as
            does a number above the vocabulary size.

    Raises:
        ValueError: `temperature` is negative, infinite or NaN, or `top_k` is negative or no integer.
    """

    supports_continuous_batching = True

    def __init__(self, temperature: float = 1.0, top_k: int | None = None) -> None:
        if isinstance(temperature, bool) or not isinstance(temperature, Real):
            raise ValueError(f"temperature must be a number, got {temperature!r}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}; 0 means greedy")
        if isinstance(top_k, bool) or not isinstance(top_k, (Integral, type(None))) or (top_k or 0) < 0:
            raise ValueError(f"top_k must be an integer of at least 0 or None, got {top_k!r}; 0 and None keep all")
        self.temperature = float(temperature)
        self.top_k = int(top_k or 0)
        self.greedy = temperature < torch.finfo(torch.float32).eps

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
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
    r"""
    Draw the next token of each row with generators of its own, and leave only the drawn tokens.

    What `generate()` then has to do is greedy, so the global random state is neither used nor changed. A row draws the
    same tokens alone as in a batch. Put it last:

    ```python
    >>> processors = [TemperatureTopKLogitsProcessor(temperature=1.4, top_k=25), SeededDrawLogitsProcessor(123)]
    >>> model.generate(**inputs, do_sample=False, logits_processor=processors)
    ```

    It counts on: a new one for every call of `generate()`.

    Args:
        seed (`int`, `Sequence[int]` or `torch.Generator`):
            A seed for each row; one integer stands for seed, seed + 1, ... from the first row on. A row draws what
            `torch.multinomial` draws after `torch.manual_seed` with its seed. A generator, on the device of the
            scores, draws for all rows.

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

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores [B, vocab_size] that are 0 at the drawn token of each row and minus infinity elsewhere."""
        probabilities = scores.softmax(dim=-1)
        if isinstance(self.seed, torch.Generator):
            drawn = torch.multinomial(probabilities, 1, generator=self.seed)
        else:
            self.generators = self.generators or self._seeded_generators(scores)
            pairs = zip(probabilities, self.generators, strict=True)
            drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in pairs])
        return torch.full_like(scores, -math.inf).scatter(-1, drawn, 0.0)

    def _seeded_generators(self, scores: torch.FloatTensor) -> list[torch.Generator]:
        num_rows = scores.shape[0]
        seeds = range(self.seed, self.seed + num_rows) if isinstance(self.seed, int) else self.seed
        if len(seeds) != num_rows:
            raise ValueError(f"there are {len(seeds)} seeds for {num_rows} rows: give one for each, or one integer")
        return [torch.Generator(device=scores.device).manual_seed(seed) for seed in seeds]


class GPTScratchGenerationMixin(GenerationMixin):
    """`generate(..., past_context="exact")` or `"rolling"`: go on when the text is longer than the context.

    - "exact" conditions every new token on the last `max_position_embeddings` tokens, as if the text were cropped at
      every step. Positions shift at every step, so nothing can be cached beyond the context.
    - "rolling" crops to half a context when the context is full, and fills it again with the cache: a token is
      conditioned on between half a context and a whole one. For prompts of one length. Past a context of 128 tokens,
      "exact" took 4.5 times as long with 124M parameters, and 1.7 times with 11M (greedy, one row, two CPU threads).

    Without it, what is longer than the context is refused.
    """

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_context: str | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Choose the tokens [B, T] and the cache of the next forward pass, as the library does if they fit.

        Raises:
            ValueError: `past_context` is no mode, or does not go with the way of decoding; one line.
        """
        context = self.config.max_position_embeddings
        past_key_values = cache if past_key_values is None else past_key_values  # its name from transformers 5.24 on
        if past_context is not None:
            refuse_with_past_context(past_context, next_sequence_length, past_key_values, inputs_embeds, **kwargs)
        if past_context is None or input_ids.shape[1] <= context:
            return super().prepare_inputs_for_generation(
                input_ids, next_sequence_length, past_key_values, attention_mask, inputs_embeds, **kwargs
            )
        kwargs.pop("position_ids", None)  # they count from the start of the text, and the window has its own
        if past_context == "exact":
            window = context
            past_key_values, kwargs["use_cache"] = None, False
        else:
            if attention_mask is not None:
                raise ValueError('past_context="rolling" takes prompts of one length: use "exact" for padded ones')
            if past_key_values.get_seq_length() in (0, context):
                window = max(1, context // 2)
                past_key_values = grow_in_place(DynamicCache(config=self.config))
            else:
                window = 1
        attention_mask = attention_mask if attention_mask is None else attention_mask[:, -window:]
        return super().prepare_inputs_for_generation(
            input_ids[:, -window:], None, past_key_values, attention_mask, **kwargs
        )

    def _sample(
        self, input_ids: torch.LongTensor, *args: Any, generation_config: GenerationConfig, **kwargs: Any
    ) -> Any:
        """The library's loop for greedy decoding and sampling, with a copy of the model that decodes faster."""
        cache, model = grow_in_place(kwargs.get("past_key_values", kwargs.get("cache"))), self
        if not getattr(cache, "is_compileable", False):
            num_new_tokens = generation_config.max_length - input_ids.shape[1]
            model = prepared_for_decoding(self, input_ids.shape[0], num_new_tokens)
        # Not super(): asked for one class of a repository, the library runs this file again, and its classes are new.
        return GenerationMixin._sample(model, input_ids, *args, generation_config=generation_config, **kwargs)


def refuse_with_past_context(
    mode: str,
    next_sequence_length: int | None,
    past_key_values: Cache | None,
    inputs_embeds: torch.Tensor | None,
    is_first_iteration: bool = False,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> None:
    """Raise ValueError for what cannot be done past the context."""
    if mode not in ("exact", "rolling"):
        raise ValueError(f'past_context must be "exact" or "rolling", got {mode!r}')
    if inputs_embeds is not None:
        raise ValueError("past_context needs input_ids: embeddings cannot be cropped and embedded again")
    if getattr(past_key_values, "is_compileable", False):
        raise ValueError("past_context does not go with a static cache: leave out cache_implementation")
    if mode == "rolling" and (past_key_values is None or not use_cache):
        raise ValueError('past_context="rolling" needs the cache: leave use_cache on, or use "exact"')
    if not is_first_iteration and next_sequence_length not in (None, 1):
        raise ValueError("past_context does not go with assisted or prompt-lookup decoding: leave one of them out")


__all__ = ["GPTScratchGenerationMixin", "SeededDrawLogitsProcessor", "TemperatureTopKLogitsProcessor"]

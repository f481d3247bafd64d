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
"""Decoding: temperature and top-k as one logits processor, shipped with every repository."""

import math
from numbers import Integral, Real

import torch
from transformers import LogitsProcessor


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


__all__ = ["TemperatureTopKLogitsProcessor"]

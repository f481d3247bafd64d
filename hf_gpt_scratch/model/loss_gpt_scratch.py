# Copyright 2026 The hf_gpt_scratch authors. SPDX-License-Identifier: Apache-2.0
"""Losses. Shapes: B rows, T tokens, C hidden_size, V vocab_size, L labels. Shipped with every repository."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig


CHUNK_SIZE = 512  # tokens whose logits are in memory at a time


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """Move labels [B, T] to the token that predicts them; behind the last one there is none."""
    return nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]


def causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Compute the cross-entropy of logits [B, T, V] in nats per token, as the library's loss of this signature does.

    labels [B, T] are shifted here, shift_labels [B, T] already; `ignore_index` does not count. With
    `num_items_in_batch` it is the sum divided by that.
    """
    targets = (shifted(labels) if shift_labels is None else shift_labels).flatten().to(logits.device)
    reduction = "mean" if num_items_in_batch is None else "sum"
    rows = logits.float().view(-1, vocab_size)
    loss = nn.functional.cross_entropy(rows, targets, ignore_index=ignore_index, reduction=reduction)
    return loss if num_items_in_batch is None else loss / torch.as_tensor(num_items_in_batch, device=loss.device)


def chunked_causal_lm_loss(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    labels: torch.Tensor | None,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Compute `causal_lm_loss` of `head(hidden_states)`, hidden_states [B, T, C], a chunk of tokens at a time.

    For GPT-2's vocabulary the logits of 2048 tokens take 412 MB, their logarithms and gradient as much again; here
    those of a chunk are all there is, and the backward pass computes them once more.
    """
    targets = (shifted(labels) if shift_labels is None else shift_labels).flatten().to(hidden_states.device)

    def sum_of_chunk(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return causal_lm_loss(head(hidden), None, vocab_size, num_items_in_batch=1, shift_labels=targets)

    chunks = zip(hidden_states.flatten(0, -2).split(CHUNK_SIZE), targets.split(CHUNK_SIZE), strict=True)
    total = sum(checkpoint(sum_of_chunk, *chunk, use_reentrant=False) for chunk in chunks)
    count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
    count = torch.as_tensor(count, device=total.device)
    # A batch without a label has no mean, but its gradient is 0, not 0 times infinity.
    return torch.where(count > 0, total / count.clamp(min=1), math.nan)


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Compute what `config.problem_type` asks for; None is a regression for one label, several at once for floats.

    logits [B, L] or [B, T, L] with labels [B], [B, T], or, for regression and several at once, [B, L].
    """
    labels, kind = labels.to(logits.device), config.problem_type
    if kind == "regression" or (kind is None and config.num_labels == 1 and logits.ndim == 2):
        return nn.functional.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
    if kind == "multi_label_classification" or (kind is None and labels.is_floating_point()):
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)
    return nn.functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten())

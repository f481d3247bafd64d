"""Causal attention with dropout on a CPU: a block of queries at a time, with only the keys it may see.

It computes in float32 whatever the dtype: of a step in bf16 it takes a small part, and keeps the weights exact.

The formulas are those of FlashAttention (arXiv:2205.14135, appendix B). PyTorch's flash kernel has no dropout: its
fallback keeps all attention weights and takes two to four times as long.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_gpt_scratch.training.cpu.dropout import DropoutMasks


NAME = "blockwise_on_cpu"
# Queries of a block, and scores of a block: the number of heads at once is chosen so that they stay in the cache.
BLOCK_SIZE = 64
MAX_SCORES = 2**20
MIN_LENGTH = 64  # tokens; shorter texts are not faster
FUTURE = torch.full((BLOCK_SIZE, BLOCK_SIZE), -math.inf).triu(1)

Index = tuple[int, slice, slice]


class BlockwiseAttention(torch.autograd.Function):
    """Attention of query, key and value [B, H, T, D], in which position t sees 0 to t."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, dropout: float
    ) -> torch.Tensor:
        """Compute [B, H, T, D]."""
        masks = DropoutMasks(dropout)
        kept, dtype = (query, key, value), query.dtype
        query, key, value = (tensor.float() for tensor in kept)
        output = torch.empty_like(query)
        for rows, columns in blocks(query):
            weights = attention_weights(query[rows], key[columns], scaling)
            weights.mul_(masks.draw(weights.shape))
            torch.bmm(weights, value[columns], out=output[rows])
        output = output.mul_(masks.scale).to(dtype)
        ctx.save_for_backward(*kept, output)
        ctx.scaling, ctx.dropout, ctx.seed = scaling, dropout, masks.seed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients; weights and masks are recomputed."""
        dtype = grad.dtype
        query, key, value, output, grad = (tensor.float() for tensor in (*ctx.saved_tensors, grad))
        masks = DropoutMasks(ctx.dropout, ctx.seed)
        grad_query, grad_key, grad_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        # The sum over the keys of weight times its gradient, which softmax's gradient needs.
        sums = (grad * output).sum(-1, keepdim=True)
        grad = grad * masks.scale
        for rows, columns in blocks(query):
            weights = attention_weights(query[rows], key[columns], ctx.scaling)
            kept = weights * masks.draw(weights.shape)
            grad_value[columns].baddbmm_(kept.mT, grad[rows])
            grad_scores = torch.bmm(grad[rows], value[columns].mT).mul_(kept).addcmul_(weights, sums[rows], value=-1)
            grad_query[rows].baddbmm_(grad_scores, key[columns], alpha=ctx.scaling)
            grad_key[columns].baddbmm_(grad_scores.mT, query[rows], alpha=ctx.scaling)
        return grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype), None, None


def blocks(query: torch.Tensor) -> Iterator[tuple[Index, Index]]:
    """Yield the index of each block of queries [B, H, T, D], in some heads of a row, and that of the keys it sees."""
    batch_size, num_heads, length, _ = query.shape
    most = max(1, MAX_SCORES // (BLOCK_SIZE * length))
    heads_at_once = math.ceil(num_heads / math.ceil(num_heads / most))
    for row in range(batch_size):
        for head in range(0, num_heads, heads_at_once):
            heads = slice(head, head + heads_at_once)
            for start in range(0, length, BLOCK_SIZE):
                end = min(start + BLOCK_SIZE, length)
                yield (row, heads, slice(start, end)), (row, heads, slice(end))


def attention_weights(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Compute weights [H, Q, K] of queries [H, Q, D] at the last positions of the keys [H, K, D]."""
    num_heads, num_queries, _ = query.shape
    scores = query.new_empty(num_heads, num_queries, key.shape[1])
    torch.baddbmm(scores, query, key.mT, beta=0, alpha=scaling, out=scores)
    scores[:, :, -num_queries:] += FUTURE[:num_queries, :num_queries]
    return torch.softmax(scores, dim=-1, out=scores)


def blockwise_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `AttentionInterface` of transformers asks; PyTorch's kernel does it without dropout, with a mask, with
    past keys, and in short texts.
    """
    is_causal = attention_mask is None and query.shape == key.shape
    if not is_causal or dropout == 0 or query.shape[2] < MIN_LENGTH:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    with torch.autocast("cpu", enabled=False):
        return BlockwiseAttention.apply(query, key, value, scaling, dropout).transpose(1, 2), None


def use_blockwise_attention(model: PreTrainedModel) -> None:
    """Switch a model on a CPU from PyTorch's kernel to blockwise attention."""
    AttentionInterface.register(NAME, blockwise_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)

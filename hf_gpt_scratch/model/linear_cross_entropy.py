"""The language model's loss without its logits, faster than the model's own `chunked_causal_lm_loss`.

For GPT-2's vocabulary the logits of 2048 tokens take 412 MB, their logarithms and their gradient as much again. Here
no more than a chunk of them is ever there, and the head's gradients are computed in the forward pass, while it is: the
gradient of a sum of cross-entropies is known up to the factor that the backward pass brings.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hf_gpt_scratch.model import GPTScratchForCausalLM
from hf_gpt_scratch.model.loss_gpt_scratch import chunked_causal_lm_loss, shifted


# Tokens of a chunk: few, for memory, but so many that adding up the head's gradient costs little beside computing it.
CHUNK_SIZE = 512
# Elements. A product that writes rows of 50257 floats takes 1.4 times as long on a CPU as one whose rows begin at
# multiples of 64.
ROW_MULTIPLE = 64
# What a CPU works on at a time in half precision, few enough to stay in its cache: tokens whose logits it converts to
# float32 and back, and rows of the head's gradient.
SOFTMAX_ROWS = 32
GRADIENT_ROWS = 2048


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of `hidden_states @ weight.T`, see `linear_cross_entropy`, and each of them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        chunk_size: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the losses and their sum, and keep the gradients of the sum that a backward pass may ask for."""
        num_tokens, vocab_size = len(hidden_states), len(weight)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        # In float32, as a single product adds up inside, and as the backward pass scales.
        grad_hidden = hidden_states.new_empty(hidden_states.shape if needs_hidden else 0, dtype=torch.float32)
        grad_weight = weight.new_empty(weight.shape if needs_weight else 0, dtype=torch.float32)
        if num_tokens == 0:
            grad_weight.zero_()
        losses = hidden_states.new_empty(num_tokens, dtype=torch.float32)
        ctx.dtypes = hidden_states.dtype, weight.dtype
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
        row_length = math.ceil(vocab_size / ROW_MULTIPLE) * ROW_MULTIPLE
        buffer = hidden_states.new_empty(min(chunk_size, num_tokens), row_length)
        for start in range(0, num_tokens, chunk_size):
            chunk = slice(start, start + chunk_size)
            hidden = hidden_states[chunk]  # [n, C]
            is_ignored = labels[chunk, None] == -100  # [n, 1]
            targets = labels[chunk, None].masked_fill(is_ignored, 0)
            logits = buffer[: len(hidden)]
            logits[:, :vocab_size].addmm_(hidden, weight.T, beta=0)
            logits[:, vocab_size:] = -math.inf  # what is beyond the vocabulary has probability 0
            chunk_losses, errors = losses_and_errors(logits, targets, needs_hidden or needs_weight)
            losses[chunk] = chunk_losses.masked_fill_(is_ignored.squeeze(1), 0.0)
            errors = errors[:, :vocab_size]
            if needs_hidden:
                grad_hidden[chunk] = (errors @ weight).masked_fill_(is_ignored, 0.0)
            if needs_weight:
                hidden = hidden.masked_fill(is_ignored, 0.0)
                add_product(grad_weight, errors, hidden, is_first=start == 0)
        ctx.save_for_backward(grad_hidden if needs_hidden else None, grad_weight if needs_weight else None)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the kept gradients, in place: a second backward pass over the same graph is refused by PyTorch."""
        scaled = [
            None if gradient is None else gradient.mul_(grad_loss).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def losses_and_errors(
    logits: torch.Tensor, targets: torch.Tensor, needs_errors: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropies [n], float32, of logits [n, V] at targets [n, 1], and the gradient of their sum.

    The gradient, in the dtype of the logits and if it is needed, may be written over them.
    """
    is_float32 = logits.dtype == torch.float32
    losses, errors = logits.new_empty(len(logits), dtype=torch.float32), logits
    num_rows = SOFTMAX_ROWS if logits.is_cpu and not is_float32 else len(logits)
    for start in range(0, len(logits), num_rows):
        rows = slice(start, start + num_rows)
        # On a CPU, getting memory for as much again would take longer than computing it.
        out = logits if logits.is_cpu and is_float32 else None
        log_probabilities = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32, out=out)
        losses[rows] = -log_probabilities.gather(1, targets[rows]).squeeze(1)
        if not needs_errors:
            continue
        # The gradient of a cross-entropy by its logits: probabilities, less 1 at the target.
        part = log_probabilities.exp_()
        part.scatter_add_(1, targets[rows], part.new_full(targets[rows].shape, -1.0))
        if is_float32:
            errors = part
        else:
            logits[rows] = part
    return losses, errors


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, is_first: bool) -> None:
    """Add left.T @ right to a float32 total [V, C], or write the first product over it.

    left [n, V] and right [n, C] have one dtype.
    """
    if left.dtype == torch.float32:
        total.addmm_(left.T, right, beta=0 if is_first else 1)
        return
    num_rows = GRADIENT_ROWS if total.is_cpu else len(total)
    for rows, columns in zip(total.split(num_rows), left.split(num_rows, dim=1), strict=True):
        product = columns.T @ right
        if is_first:
            rows.copy_(product)
        else:
            rows.add_(product.float() if product.is_cpu else product)  # a CPU is slow at adding two dtypes


def linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    chunk_size: int = CHUNK_SIZE,
    reduction: str = "sum",
) -> torch.Tensor:
    """Sum over tokens the cross-entropy of softmax(hidden_states @ weight.T) at the labels, in nats, float32.

    The same as the loss over whole logits, and with the same gradients, up to the rounding of sums in another order.

    Args:
        hidden_states: [N, C], floating point.
        weight: [V, C], of the same dtype; under autocast the products are computed in its dtype.
        labels: [N], int64, shifted already; -100 does not count.
        chunk_size: tokens whose logits are in memory at a time.
        reduction: "sum"; or "none" for the losses of the tokens, [N], without a gradient.
    """
    device_type, dtype = hidden_states.device.type, hidden_states.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    if not torch.is_grad_enabled():  # a parameter asks for its gradient here too
        weight = weight.detach()
    total, losses = LinearCrossEntropy.apply(hidden_states, weight, labels, chunk_size, dtype)
    return losses if reduction == "none" else total


def fused_causal_lm_loss(
    head: Any,
    hidden_states: torch.Tensor,
    labels: Any,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    reduction: str = "mean",
    **kwargs: Any,
) -> torch.Tensor:
    """Compute `chunked_causal_lm_loss`; where the head is more than a matrix (LoRA, int8, hooks), by itself.

    With `reduction="none"` a plain head gives the loss of each token, of the shape of the labels, without a gradient.
    """
    if not is_plain_matrix(head):
        kwargs |= {"shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
        return chunked_causal_lm_loss(head, hidden_states, labels, vocab_size, **kwargs)
    targets = (shifted(labels) if shift_labels is None else shift_labels).flatten().to(hidden_states.device)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum()

    def mean_loss(hidden_states: torch.Tensor) -> torch.Tensor:
        if reduction == "none":
            losses = linear_cross_entropy(hidden_states.flatten(0, -2), head.weight, targets, reduction="none")
            return losses.view(hidden_states.shape[:-1])
        total = linear_cross_entropy(hidden_states.flatten(0, -2), head.weight, targets)
        count = torch.as_tensor(num_items_in_batch, device=total.device)
        # A batch without a label has no mean, but its gradient is 0, not 0 times infinity.
        return torch.where(count > 0, total / count.clamp(min=1), math.nan)

    if not head._forward_pre_hooks:
        return mean_loss(hidden_states)
    head.forward = mean_loss  # FSDP2 gathers the weight, and spreads its gradient, around a call of the head
    try:
        return head(hidden_states)
    finally:
        del head.forward


def use_fused_loss(model: nn.Module) -> None:
    """Have a language model of this project compute its loss this way where no logits are asked for."""
    if isinstance(model, GPTScratchForCausalLM):
        model.chunked_loss_function = fused_causal_lm_loss


def is_plain_matrix(head: nn.Module) -> bool:
    """Tell whether calling the head only multiplies with its weight, an ordinary tensor (FSDP2 gathers it)."""
    kind, hooks = type(head), [*head._forward_pre_hooks.values(), *head._forward_hooks.values()]
    if is_of_fsdp(kind):
        kind = kind.__bases__[-1]  # its class is put before the module's
    is_called_plainly = kind is nn.Linear and "forward" not in vars(head) and head.bias is None
    is_ordinary = not hasattr(head.weight, "__tensor_flatten__")  # what subclasses of tensors define
    return is_called_plainly and is_ordinary and all(map(is_of_fsdp, hooks))


def is_of_fsdp(thing: Any) -> bool:
    """Tell whether a class or function is part of FSDP2, which may not be imported: not every PyTorch has it."""
    return thing.__module__.startswith("torch.distributed.fsdp.")

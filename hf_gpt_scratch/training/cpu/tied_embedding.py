"""The gradient of an embedding that is also the head's weight, without a second matrix [vocab_size, hidden_size].

Autograd makes a whole matrix of zeros, 154 MB for GPT-2 124M, adds the few rows of the batch to it, and then adds it
to the head's gradient. Here the rows go straight into that.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from hf_gpt_scratch.training.distributed import is_in_group


class LookUp(torch.autograd.Function):
    """`nn.functional.embedding` of ids [...] in the weight [V, C] of a module, whose `grad` it adds to by itself."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, input_ids: torch.Tensor, module: nn.Embedding) -> torch.Tensor:
        """Compute [..., C]; `anchor` wants a gradient, so that there is a backward pass: autograd is not to know that
        the weight is used here, or it would hold the head's gradient back until this one is there.
        """
        ctx.save_for_backward(input_ids)
        ctx.module = module
        return nn.functional.embedding(input_ids, module.weight.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None]:
        """Sum up what each token gets, then add: in the order of autograd, and so to the same bits."""
        (input_ids,) = ctx.saved_tensors
        weight = ctx.module.weight
        tokens, places = input_ids.unique(return_inverse=True)
        sums = weight.new_zeros(len(tokens), weight.shape[1])
        sums.index_add_(0, places.flatten(), grad.flatten(0, -2).to(weight.dtype))
        if weight.grad is None:  # the head has none, or it is not there yet
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, tokens, sums)
        return None, None, None


class TiedEmbedding(nn.Embedding):
    """An `nn.Embedding` whose weight gets another gradient from the head."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute [...] -> [..., C]."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        return LookUp.apply(torch.empty(0, requires_grad=True), input, self)


def join_tied_gradients(model: PreTrainedModel, accelerator: Accelerator, acts_on_gradients: bool) -> None:
    """Have the token embedding of a model add to the head's gradient, where that is allowed, else leave it alone.

    Args:
        model: with `model.embed_tokens` and `lm_head`.
        accelerator: of the run.
        acts_on_gradients: whether something is done with each gradient as soon as autograd calls it complete (stepping
            in the backward pass, compiling). Process groups do so too.
    """
    embedding = model.model.embed_tokens
    is_tied = embedding.weight is model.lm_head.weight
    # On a GPU the sums would be added up in an order that changes.
    is_cpu = model.device.type == accelerator.device.type == "cpu"
    if is_tied and is_cpu and not is_in_group(accelerator) and not acts_on_gradients:
        embedding.__class__ = TiedEmbedding

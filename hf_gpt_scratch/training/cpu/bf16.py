"""Steps that autocast to bf16 leaves undone on a CPU: one conversion of each norm, an embedding gradient by rows."""

from typing import Any

import torch
from transformers import PreTrainedModel


def convert_norms_once(model: PreTrainedModel) -> None:
    """Convert each normalized copy of the residual stream once, and keep it once for the backward pass.

    Autocast does both for each of the projections that read it.
    """
    for name, module in model.named_modules():
        if name.endswith(("input_layernorm", "post_attention_layernorm")):
            module.register_forward_hook(as_autocast)


def as_autocast(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Convert an output to the dtype of autocast, where that is on."""
    return output.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else output


def add_rows_of_tokens(model: PreTrainedModel) -> None:
    """Add the gradients of a batch's token embeddings to `grad` in place, row by row.

    Autograd makes a dense gradient for them, as large as that of the head and nearly all zeros, when all other
    gradients are there already: the moment of the most memory. What waits for a parameter's gradient in the backward
    pass, such as DDP, does not see these rows.
    """
    model.get_input_embeddings().register_forward_hook(cut_off_weight)


def cut_off_weight(module: torch.nn.Embedding, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Return an output whose gradient goes to rows of the weight's `grad`."""
    weight, (token_ids,) = module.weight, inputs
    if not output.requires_grad:
        return output

    def add_rows(grad: torch.Tensor) -> None:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, token_ids.flatten(), grad.flatten(0, -2))

    embeddings = output.detach().requires_grad_()
    embeddings.register_hook(add_rows)
    return embeddings

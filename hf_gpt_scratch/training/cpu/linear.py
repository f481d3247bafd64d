"""Linear layers of training on a CPU in float32: multiplied by the library that is faster there, in less memory.

PyTorch multiplies by MKL. With AVX-512 on an AMD processor, oneDNN's products take about 5 % off a step of GPT-2 124M;
on one of Intel's, MKL's take 4 % less than oneDNN's, and with AVX2 alone 7 % less. The MLP around two of the layers is
replaced too, for memory: its wide activation is not kept for the backward pass.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from hf_gpt_scratch.model.modeling_gpt_scratch import GPTScratchMLP


# Width of a model from which on it pays.
LEAST_WIDTH = 256


class Product(torch.autograd.Function):
    """`nn.functional.linear` of inputs [..., in], weight [out, in] and bias [out] or None."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute [..., out]."""
        ctx.save_for_backward(inputs, weight)
        return multiply(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients."""
        return gradients(grad, *ctx.saved_tensors, ctx.needs_input_grad)


class ProductOfActivation(torch.autograd.Function):
    """`Product` of `act_fn(inputs)`, which takes as much memory as `inputs` and little time: it is not kept from
    the forward pass, but computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        act_fn: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Compute [..., out]."""
        ctx.save_for_backward(inputs, weight)
        ctx.act_fn = act_fn
        return multiply(act_fn(inputs), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients."""
        inputs, weight = ctx.saved_tensors
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_(ctx.needs_input_grad[0])
            activated = ctx.act_fn(inputs)
        grad_inputs, *others = gradients(grad, activated.detach(), weight, ctx.needs_input_grad)
        if grad_inputs is not None:
            (grad_inputs,) = torch.autograd.grad(activated, inputs, grad_inputs)
        return grad_inputs, *others, None


def gradients(
    grad: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, needed: tuple[bool, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of a product's inputs, weight and bias; that of the weight by MKL, which is as fast there anywhere."""
    needs_inputs, needs_weight, needs_bias, *_ = needed
    rows = grad.reshape(-1, grad.shape[-1]).contiguous()
    grad_inputs = multiply(rows, weight.T, None).view(inputs.shape) if needs_inputs else None
    grad_weight = rows.T @ inputs.reshape(-1, inputs.shape[-1]) if needs_weight else None
    return grad_inputs, grad_weight, rows.sum(0) if needs_bias else None


def multiply(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`inputs @ weight.T + bias`, where oneDNN is faster by an operation of PyTorch that is not documented."""
    if not is_onednn_faster():
        return nn.functional.linear(inputs, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


@functools.cache
def is_onednn_faster() -> bool:
    """Whether this processor and this build of PyTorch multiply faster by oneDNN."""
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    # PyTorch 2.10 does not tell the name.
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    return is_there and torch.backends.cpu.get_cpu_capability() == "AVX512" and not name.startswith("Intel")


class CpuLinear(nn.Linear):
    """An `nn.Linear` whose product is `multiply`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute [..., in_features] -> [..., out_features]."""
        return Product.apply(input, self.weight, self.bias)


class CpuMLP(GPTScratchMLP):
    """The MLP of a layer, which keeps one of its two wide tensors for the backward pass."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute [..., C] -> [..., C]."""
        linear = self.down_proj
        return ProductOfActivation.apply(self.up_proj(hidden_states), linear.weight, linear.bias, self.act_fn)


REPLACEMENTS = {nn.Linear: CpuLinear, GPTScratchMLP: CpuMLP}


def is_float32_on_cpu(model: PreTrainedModel, accelerator: Accelerator, is_compiled: bool) -> bool:
    """Whether a model's forward pass runs on a CPU, as it is written, and all of it in float32."""
    is_plain = accelerator.mixed_precision == "no" and not accelerator.is_fsdp2 and not is_compiled
    return is_plain and model.device.type == accelerator.device.type == "cpu" and model.dtype == torch.float32


def use_fast_linear(model: PreTrainedModel, accelerator: Accelerator, is_compiled: bool) -> None:
    """Replace the linear layers and MLPs of a model where that is possible and pays, else leave it alone.

    The language-model head stays as it is: its loss is computed without calling it.
    """
    if is_float32_on_cpu(model, accelerator, is_compiled) and model.config.hidden_size >= LEAST_WIDTH:
        for module in model.base_model.modules():
            module.__class__ = REPLACEMENTS.get(type(module), type(module))

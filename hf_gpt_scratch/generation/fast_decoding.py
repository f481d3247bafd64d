"""Decoding near the speed of a CPU's memory: oneDNN's products and a cache that grows in place, both for one call.

A step of decoding reads every weight once and computes little with it, so what counts is how fast the weights come out
of memory. oneDNN reads them as they are faster for one row than `nn.Linear` does; for several rows it packs them into
the blocks that its kernels read. The product then differs in the order of its sums only. The model itself is never
touched: a copy of its modules shares all that is not packed and is gone when the call ends, so nothing can be stale,
and threads may generate with one model at the same time.

It lives on operations of PyTorch that are not documented, so it is not among the files that travel with a repository.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from hf_gpt_scratch.model import GPTScratchForCausalLM
from hf_gpt_scratch.model.modeling_gpt_scratch import CACHE


# Packing takes as long as it saves in about 15 steps.
MIN_NEW_TOKENS = 32
# Tokens that a layer of the cache has room for beyond those it holds.
SPARE_SLOTS = 64


class OneDNNLinear(nn.Linear):
    """An `nn.Linear` with the same parameters, whose products oneDNN computes.

    Args:
        linear (`nn.Linear`):
            What it stands for.
        num_rows (`int`, *optional*):
            Keep a copy of the weight that is packed for products of so many rows. None: read the weight as it is.
    """

    def __init__(self, linear: nn.Linear, num_rows: int | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.packed_weight = linear.weight.detach()
        if num_rows is not None:
            self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(self.packed_weight, num_rows)
        # All that a product needs, looked up once and not for each token.
        self.operands: tuple = (self.packed_weight, self.bias, "none", [], "")
        self.product = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute [..., in_features] -> [..., out_features]."""
        return self.product(input, *self.operands)


class UnwatchedModule:
    """A module without hooks, called as a function: PyTorch looks for hooks at every call of a module.

    Its attributes are those of the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.forward = module, module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Look up what is not here in the module."""
        return getattr(self.module, name)


class GrowingLayer(DynamicLayer):
    """A layer of the cache that has room for further tokens, where `DynamicLayer` copies all it holds for each one."""

    keys: Any  # tensors, None before the first tokens
    values: Any
    buffer: Any
    views: Any

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin with no tokens and no buffer."""
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.buffer, self.views = None, None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, H, T, D]; return all of them [B, H, S, D], as views into the buffer."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # the backward pass needs what it saw
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        # Other views than those handed out: the cache was cropped, or its rows were reordered.
        is_ours = self.views is not None and self.keys is self.views[0] and self.values is self.views[1]
        # PyTorch lets nothing be written into what was made under inference_mode(), once that has ended.
        is_sealed = is_ours and self.buffer.is_inference() and not torch.is_inference_mode_enabled()
        if not is_ours or is_sealed or stop > self.buffer.shape[-2]:
            rows, heads, _, head_size = key_states.shape
            buffer = key_states.new_empty(2, rows, heads, stop + SPARE_SLOTS, head_size)
            buffer[0, :, :, :start], buffer[1, :, :, :start] = self.keys, self.values
            self.buffer = buffer
        # Of narrow and unbind, because indexing takes longer.
        places = self.buffer.narrow(-2, start, stop - start).unbind()
        places[0].copy_(key_states)
        places[1].copy_(value_states)
        self.views = self.keys, self.values = self.buffer.narrow(-2, 0, stop).unbind()
        return self.views


class GrowingCache(DynamicCache):
    """A `DynamicCache` of layers that grow in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer

    def empty_like(self) -> "GrowingCache":
        """Make the cache that a text goes on with past its context."""
        return GrowingCache()


def generate(model: PreTrainedModel, input_ids: torch.Tensor, *, max_new_tokens: int, **options: Any) -> Any:
    """Call `model.generate(input_ids, max_new_tokens=max_new_tokens, **options)`, faster for a gpt_scratch model.

    The ids are the same. On a CPU in float32, for several rows of input_ids [B, T] and at least `MIN_NEW_TOKENS` new
    tokens, it takes as much memory as the matrices of the model once more, until it ends. What the options say of a
    cache is left alone.

    Raises:
        ValueError: `input_ids` has another shape or dtype, or an id that the model does not know.
    """
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        shape = f"shape {list(input_ids.shape)} and dtype {input_ids.dtype}"
        raise ValueError(f"input_ids has {shape}, not [B, T] of an integer dtype: one text is input_ids[None]")
    embeddings: Any = model.get_input_embeddings()
    vocab_size = len(embeddings.weight)
    if unknown := input_ids[(input_ids < 0) | (input_ids >= vocab_size)].tolist():
        raise ValueError(f"token id {unknown[0]} is outside the vocabulary of the model, 0..{vocab_size - 1}")
    if isinstance(model, GPTScratchForCausalLM) and options.get("cache_implementation") is None:
        with torch.no_grad():
            model = prepared_for_decoding(model, len(input_ids), max_new_tokens)
        if options.get("use_cache", True) and not {"past_key_values", "cache", "assistant_model"} & set(options):
            options[CACHE] = GrowingCache()
    generator: Any = model  # PreTrainedModel does not declare `generate`
    return generator.generate(input_ids, max_new_tokens=max_new_tokens, **options)


def prepared_for_decoding(model: PreTrainedModel, num_rows: int, num_new_tokens: int) -> PreTrainedModel:
    """Return a copy of the model that decodes faster if that is possible, else the model itself.

    The copy shares parameters, buffers and hooks. For several rows and at least `MIN_NEW_TOKENS` new tokens it takes
    as much memory as the matrices of the model once more, else none.
    """
    parameters = list(model.parameters())
    is_plain = all(type(p) is nn.Parameter and p.dtype == torch.float32 and p.is_cpu for p in parameters)
    is_watched = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    is_rewired = any("forward" in vars(module) or module._compiled_call_impl for module in model.modules())
    # These operations of PyTorch are not documented: a build or version without them decodes as it is.
    has_operations = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    if is_watched or is_rewired or not (is_plain and has_operations):
        return model
    prepare: Callable[[nn.Linear], nn.Linear] = OneDNNLinear
    if num_new_tokens >= MIN_NEW_TOKENS and num_rows > 1:
        prepare = partial(OneDNNLinear, num_rows=num_rows)
    return with_linears(model, prepare, type(model).__module__)


def with_linears(module: nn.Module, prepare: Callable[[nn.Linear], nn.Linear], own_file: str) -> Any:
    """Copy the modules of one source file and replace their linear layers; foreign ones are shared as they are.

    In the copy, the attributes under which modules without hooks are called are `UnwatchedModule`s.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if type(module) is nn.Linear and not any(hooks):
        return prepare(module)
    if type(module) is nn.Dropout and not (module.training or any(hooks)):
        return nn.Identity()
    if type(module) is not nn.ModuleList and type(module).__module__ != own_file:
        return module
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # also the hooks: what is hooked into the copy stays there
            vars(twin)[name] = value.copy()
    for name, child in module.named_children():
        twin._modules[name] = part = with_linears(child, prepare, own_file)
        if is_unwatched(part):
            vars(twin)[name] = UnwatchedModule(part)  # an attribute of this name is found before the module
    return twin


def is_unwatched(module: nn.Module) -> bool:
    """Return True if calling a module is no more than calling its `forward`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    # A list of modules has no `forward`.
    return type(module) is not nn.ModuleList and not any(hooks) and not nn.modules.module._has_any_global_hook()

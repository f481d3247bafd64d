"""Estimate the memory of a run: rehearse a step with tensors that have shapes and no content."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss
from hf_gpt_scratch.training.activation_checkpointing import recompute_activations
from hf_gpt_scratch.training.freezing import freeze
from hf_gpt_scratch.training.optim import build_optimizer
from hf_gpt_scratch.training.optimizer_in_backward import StepsInBackward
from hf_gpt_scratch.training.peak_flops import product_dtype
from hf_gpt_scratch.training.settings import TrainingSettings


class MemoryCount(TorchDispatchMode):
    """While entered, counts the bytes of all tensors made, as long as they live; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, num_bytes: int) -> None:
        self.now -= num_bytes


def sketch(config: PretrainedConfig) -> PreTrainedModel:
    """Build a model whose tensors have shapes and no content."""
    with FakeTensorMode():
        return AutoModelForCausalLM.from_config(config)


def estimate_memory(config: PretrainedConfig, settings: TrainingSettings, device: torch.device, precision: str) -> int:
    """Count the bytes of weights, gradients, optimizer state and activations at the fullest moment of two steps.

    Two, because the optimizer has its state only after the first; each of at most two micro-batches, because from the
    second on gradients are there in the forward pass.

    Args:
        config: of the model.
        settings: of the run.
        device: of the run; nothing is allocated on it.
        precision: "no", "bf16" or "fp16".
    """
    # The fused kernel does not run on such tensors; the other one has the same state and only adds temporaries.
    settings = replace(settings, optim="muon" if settings.optim == "muon" else "adamw_torch")
    shape = settings.per_device_train_batch_size, settings.window_size
    with FakeTensorMode(), torch.device(device), MemoryCount() as count:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=settings.attn_implementation).train()
        use_fused_loss(model)
        freeze(model, settings.freeze or [])
        if settings.gradient_checkpointing:
            recompute_activations(model)
        optimizer = build_optimizer(model, settings)
        if settings.optimizer_in_backward:
            StepsInBackward(model, optimizer)
        for _ in range(2):
            for _ in range(min(settings.gradient_accumulation_steps, 2)):
                tokens = torch.zeros(shape, dtype=torch.long)
                with torch.autocast(device.type, dtype=product_dtype(precision), enabled=precision != "no"):
                    loss = model(
                        input_ids=tokens, shift_labels=tokens, use_cache=False, skip_logits=settings.chunked_loss
                    ).loss
                loss.backward()
                del loss
            optimizer.step()
            optimizer.zero_grad()
    return count.peak

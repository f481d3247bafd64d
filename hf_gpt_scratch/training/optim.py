"""AdamW or Muon with decay groups, and the learning rate of each step."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from hf_gpt_scratch.training.muon import MuonWithAdamW
from hf_gpt_scratch.training.settings import TrainingSettings


def build_optimizer(model: PreTrainedModel, settings: TrainingSettings) -> Optimizer:
    """Build AdamW (arXiv:1711.05101) or Muon; only the matrices of the layers decay, unless all are asked to.

    Decay pulls weights to zero: sensible for a matrix, harmful for a LayerNorm scale, and for an embedding row it
    would act on tokens that the batch does not even contain. Muon takes the hidden matrices, and leaves embeddings,
    the language-model head and all vectors to AdamW.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decay if is_matrix or settings.decay_all_parameters else no_decay).append(parameter)
    adamw: dict[str, Any] = {
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "fused": None if settings.optim == "adamw_torch" else True,
    }
    if settings.optim != "muon":
        return AdamW(groups(decay, no_decay, settings), lr=settings.learning_rate, **adamw)
    hidden = {id(parameter) for layer in model.model.layers for parameter in layer.parameters() if parameter.ndim == 2}
    muon_groups = groups([parameter for parameter in decay if id(parameter) in hidden], [], settings)
    adamw_groups = groups([parameter for parameter in decay if id(parameter) not in hidden], no_decay, settings)
    return MuonWithAdamW(muon_groups, adamw_groups, settings.learning_rate, settings.muon_momentum, **adamw)


def groups(
    decay: list[nn.Parameter], no_decay: list[nn.Parameter], settings: TrainingSettings
) -> list[dict[str, Any]]:
    """Build the parameter groups with and without weight decay; of two, an empty one is left out."""
    both = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return [group for group in both if group["params"]] or both[:1]


def learning_rate_at(step: int, num_steps: int, settings: TrainingSettings) -> float:
    """Compute the learning rate of optimizer step `step`, counted from 0: linear warm-up, then its course.

    A pure function of the step: there is no scheduler whose state could be lost or stepped once per process. The
    cosine is that of arXiv:1608.03983 without restarts, the straight line that of arXiv:2502.15938; after `num_steps`
    the rate stays the lowest.
    """
    warmup_steps, lowest = settings.warmup_steps or 0, settings.min_learning_rate or 0.0
    if settings.minutes is not None:  # fewer steps than were expected may fit
        warmup_steps = min(warmup_steps, num_steps // 2)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / (warmup_steps + 1)
    if settings.lr_scheduler_type == "constant":
        return settings.learning_rate
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    part = 1 - progress if settings.lr_scheduler_type == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return lowest + (settings.learning_rate - lowest) * part


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give all parameter groups one rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def reset_to_torch_defaults(model: nn.Module) -> None:
    """Draw all weights again as PyTorch's layers draw theirs when they are built, in the order of the modules.

    This is the tutorial's initialization: the same seed gives the same weights as building its model does.
    """
    for module in model.modules():
        if callable(reset_parameters := getattr(module, "reset_parameters", None)):
            with torch.no_grad():
                reset_parameters()

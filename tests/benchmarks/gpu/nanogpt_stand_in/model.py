"""Stands in for nanoGPT's file of this name, with the names that our benchmarks use."""

from dataclasses import dataclass

import torch
from torch import nn

from tests.conversion.foreign_models import NanoGPT


@dataclass
class GPTConfig:
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    bias: bool = True


class GPT(NanoGPT):
    def __init__(self, config: GPTConfig) -> None:
        sizes = config.block_size, config.n_embd, config.n_layer, config.n_head
        super().__init__(config.vocab_size, *sizes, config.bias)

    def forward(self, ids, targets):
        logits = super().forward(ids)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        matrices = [weight for weight in self.parameters() if weight.ndim > 1]
        vectors = [weight for weight in self.parameters() if weight.ndim == 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)

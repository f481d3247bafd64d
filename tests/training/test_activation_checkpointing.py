"""Proves that activations are computed again in the backward pass, by a method that the library does not warn of."""

import warnings
from collections.abc import Callable

import torch

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.training.activation_checkpointing import recompute_activations


def test_each_layer_runs_again_in_the_backward_pass(build_model: Callable[..., GPTScratchForCausalLM]) -> None:
    model = build_model().train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recompute_activations(model)
    calls = []
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    ids = torch.arange(8)[None]
    loss = model(ids, labels=ids, use_cache=False).loss
    assert calls == [0, 1, 2]
    loss.backward()
    assert calls == [0, 1, 2, 2, 1, 0]

"""Activation checkpointing: recompute activations in the backward pass instead of keeping them."""

from transformers import PreTrainedModel


def recompute_activations(model: PreTrainedModel) -> None:
    """Switch it on, by the name of the library's method since 5.23 or by the older one."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()

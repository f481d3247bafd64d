"""Activation checkpointing: activations are computed again in the backward pass in place of being kept."""

from transformers import PreTrainedModel


def recompute_activations(model: PreTrainedModel) -> None:
    """Have a model do so, by the name that the library's method has since 5.23 or by that of before."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()

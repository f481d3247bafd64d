"""Keep parts of a model as they are while the others are trained."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop training the parameters of the modules that the patterns name.

    Args:
        model: in which a tied head and the token embedding are one parameter: naming one freezes both.
        patterns: names of modules or parameters as in `named_modules()`, where `*` stands for any characters.

    Raises:
        ValueError: a pattern names nothing, or no parameter is left to train.
    """
    parts: dict[str, nn.Module | torch.Tensor] = dict(model.named_modules())
    parts |= model.named_parameters(remove_duplicate=False)
    for pattern in patterns:
        named = [name for name in parts if fnmatchcase(name, pattern)]
        if not named:
            near = difflib.get_close_matches(pattern, parts, n=1) or ["model.layers.0"]
            raise ValueError(f"--freeze {pattern} names no part of the model: give a name such as {near[0]}")
        for name in named:
            parts[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {' '.join(patterns)} leaves nothing to train: name fewer parts")

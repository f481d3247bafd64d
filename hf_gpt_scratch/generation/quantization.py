"""8-bit weights for a CPU, by PyTorch's own dynamic quantization: a quarter of the bytes to read for each token."""

import warnings

import torch
from torch import nn
from transformers import PreTrainedModel


def quantize_int8(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the linear layers of a model, in place, by ones with int8 weights; the embeddings stay in float32.

    Each row of a weight has a scale of its own. What goes into a layer is rounded to 8 bits with one scale for the
    whole batch at each call, so that a row's text may depend on the other rows. The result is for inference only, and
    is not to be saved.

    Raises:
        ValueError: the model is not in float32 on a CPU, or PyTorch lacks what it takes.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ValueError(
            f"int8 weights are for float32 models on a CPU, and this one is in {model.dtype} on {model.device}: leave "
            "out --int8"
        )
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError:
        raise ValueError(
            f"PyTorch {torch.__version__} no longer has torch.ao.quantization, which int8 weights need: leave out "
            "--int8, or install torch 2.13"
        ) from None
    if torch.backends.quantized.engine == "none":
        raise ValueError(f"PyTorch {torch.__version__} has no int8 kernels for this processor: leave out --int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favor of torchao, a package of its own
        quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
    return model

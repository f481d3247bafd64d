"""Try beforehand that this machine can compute a step as the settings ask for."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn
from transformers.utils import is_flash_attn_2_available

from hf_gpt_scratch.evaluation import evaluation_mode
from hf_gpt_scratch.runtime.out_of_memory import is_out_of_memory
from hf_gpt_scratch.training.settings import TrainingSettings


def is_compiled(settings: TrainingSettings, accelerator: Accelerator) -> bool:
    """Return True if the model is compiled, by `--torch_compile` or by the launcher's `--dynamo_backend`."""
    return settings.torch_compile or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO


def check_compiler(accelerator: Accelerator) -> None:
    """Refuse a `--dynamo_backend` of the launcher that this PyTorch does not have.

    Raises:
        ValueError: the backend is unknown.
    """
    backend = accelerator.state.dynamo_plugin.backend
    if backend == DynamoBackend.NO:
        return
    known = torch.compiler.list_backends(exclude_tags=())
    if backend.value.lower() not in known:
        raise ValueError(
            f"the launcher's --dynamo_backend {backend.value.lower()} is not in this PyTorch: there is "
            f"{', '.join(known)}, or leave it out"
        )


def check_attention(settings: TrainingSettings) -> None:
    """Refuse an attention whose package is missing; the library would raise a traceback.

    Raises:
        ValueError: the package is missing.
    """
    if settings.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "--attn_implementation flash_attention_2 needs a GPU and its package: pip install flash-attn, or leave it "
            "out"
        )


def try_step(model: nn.Module, settings: TrainingSettings, accelerator: Accelerator) -> None:
    """Compute a micro-batch forward and backward where that may not work. Collective: call on every process.

    Attention other than PyTorch's depends on device, dtype and dropout, and compiling on a compiler. The gradients are
    dropped and the generators restored.

    Raises:
        ValueError: the step fails here.
    """
    compiles = is_compiled(settings, accelerator)
    unusual = [f"--attn_implementation {settings.attn_implementation}"]
    unusual = unusual if settings.attn_implementation in ("flash_attention_2", "flex_attention") else []
    if compiles:
        unusual.append("--torch_compile" if settings.torch_compile else "the launcher's --dynamo_backend")
    if not unusual:
        return
    batch = micro_batch(settings, accelerator.device)
    try:
        with torch.random.fork_rng():
            compute_gradients(model, batch, accelerator)
            with evaluation_mode(model):
                model(**batch)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise ValueError(
            f"a step cannot be computed here with {' and '.join(unusual)} ({reason.rstrip('.: ')}): leave it out"
        ) from error
    finally:
        model.zero_grad(set_to_none=True)


def compute_gradients(model: nn.Module, batch: dict[str, Any], accelerator: Accelerator) -> None:
    """Compute a `micro_batch` forward and backward, as in a step."""
    num_tokens = torch.tensor(batch["input_ids"].numel(), device=accelerator.device)
    accelerator.backward(model(**batch, num_items_in_batch=num_tokens).loss)


def micro_batch(settings: TrainingSettings, device: torch.device) -> dict[str, Any]:
    """Return arguments of the model's forward for a micro-batch of the first token alone."""
    shape = settings.per_device_train_batch_size, settings.window_size
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    batch = {"input_ids": tokens, "shift_labels": tokens, "use_cache": False, "skip_logits": settings.chunked_loss}
    if settings.separate_documents:
        batch["position_ids"] = torch.arange(shape[1], device=device).repeat(shape[0], 1)
    return batch

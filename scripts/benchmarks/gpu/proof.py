"""The list of proofs: this model against transformers' GPT-2 with the same weights, on the device itself.

Differences of logits are given in standard deviations of GPT-2's logits in float32. Every proof has its control: the
same difference for other tokens, which is about 1.4, must be seen.
"""

import copy
import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from hf_gpt_scratch.generation.quantization import quantize_int8
from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss
from scripts.benchmarks.generation_runs import our_model
from scripts.benchmarks.peer_models import VOCAB_SIZE, Task, draw_weights, stock_model

from .plan import Plan
from .proof_of_decoding import decoding_proofs
from .proof_of_resume import resume_proofs
from .record import MissingError, Outcome


FLOAT32 = 1e-3  # of a standard deviation; a kernel may multiply in TF32
INT8 = 0.1
VISIBLE = 0.5
HALF = 2.0  # times the error of GPT-2 itself in the same precision
GRADIENT = 1e-4  # of the largest gradient of a parameter, float32
NO_GRADIENT = 1e-4  # of the largest gradient of all
COSINE = 0.99  # between a parameter's gradients under autocast and in float32
ATTENTION = ("eager", "sdpa", "flash in sdpa", "flash_attention_2", "flex_attention")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def items(plan: Plan, folder: Path) -> dict[str, Callable[[], Outcome]]:
    """Return all proofs by name."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS may sum in another order in each run
    task = Task(**plan.task_fields(str(folder), rows=2, length=plan.prompt))
    draw_weights(task, seed=0)
    models = Models(task, plan.device)
    logits = {
        f"logits, {attention}, {dtype}": partial(check_logits, models, attention, dtype)
        for dtype in DTYPES
        for attention in ATTENTION
    }
    return {
        **logits,
        "left padding": partial(check_left_padding, models),
        "chunked loss": partial(check_losses, models, fused=False),
        "fused loss": partial(check_losses, models, fused=True),
        "gradients, bfloat16 autocast": partial(check_autocast, models, torch.bfloat16),
        "gradients, float16 autocast": partial(check_autocast, models, torch.float16),
        "gradient checkpointing": partial(check_checkpointing, models),
        "int8": partial(check_int8, models),
        **decoding_proofs(plan),
        **resume_proofs(plan, folder),
    }


class Models:
    """The two models with the same weights, made as they are asked for, and the logits of GPT-2 in float32."""

    def __init__(self, task: Task, device: str) -> None:
        self.task, self.device = task, device
        self.made = our_model(task)
        self.errors_of_stock: dict[torch.dtype, float] = {}
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(VOCAB_SIZE, (task.rows, task.length), generator=generator).to(device)

    def ours(self, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> PreTrainedModel:
        """Return our model."""
        model = copy.deepcopy(self.made)
        model.config.dropout = dropout
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        return model.to(self.device, dtype)

    def stock(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return GPT-2 with eager attention."""
        model = stock_model(self.task).eval()
        model.set_attn_implementation("eager")
        return model.to(self.device, dtype)  # type: ignore[return-value]  # its `to` is wrapped

    @cached_property
    def expected(self) -> torch.Tensor:
        """GPT-2's logits in float32 [B, T, V]."""
        with torch.no_grad():
            return self.stock(torch.float32)(self.ids).logits

    def error_of_stock(self, dtype: torch.dtype) -> float:
        """Return the error of GPT-2's own logits in another dtype."""
        if dtype not in self.errors_of_stock:
            with torch.no_grad():
                self.errors_of_stock[dtype] = self.error(self.stock(dtype)(self.ids).logits)
        return self.errors_of_stock[dtype]

    def error(self, logits: torch.Tensor) -> float:
        """Return the largest difference from GPT-2's logits in float32, in their standard deviations."""
        return float((logits.float() - self.expected).abs().max() / self.expected.std())


def require(is_so: bool, line: str) -> str:
    """Return the line that says what was found; raise ValueError with it if that is wrong."""
    if not is_so:
        raise ValueError(line)
    return line


def logits_by(model: PreTrainedModel, ids: torch.Tensor, attention: str) -> torch.Tensor:
    """Return logits with an attention, or raise `MissingError`."""
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise MissingError("the package flash-attn")
    if ids.device.type == "cuda" and "flash" in attention and model.dtype == torch.float32:
        raise MissingError("flash attention has no float32")
    model.set_attn_implementation("sdpa" if attention == "flash in sdpa" else attention)
    with torch.no_grad():
        if attention == "flash in sdpa":
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return model(ids).logits
        # Uncompiled, flex attention needs no compiler on a CPU.
        stance = "force_eager" if ids.device.type == "cpu" else "default"
        with torch.compiler.set_stance(stance):
            return model(ids).logits


def check_logits(models: Models, attention: str, dtype: str) -> Outcome:
    """Compare our logits with GPT-2's: in float32, or by the error that half precision makes in both."""
    model = models.ours(DTYPES[dtype])
    error = models.error(logits_by(model, models.ids, attention))
    control = models.error(logits_by(model, models.ids.roll(1, dims=1), attention))
    limit = FLOAT32
    if dtype != "float32":
        limit = HALF * models.error_of_stock(DTYPES[dtype])
    line = require(
        error <= limit and control > VISIBLE, f"{error:.1e}, at most {limit:.1e}; other tokens {control:.1f}"
    )
    return Outcome([line], {"error": error, "limit": limit, "control": control})


@torch.no_grad()
def check_left_padding(models: Models) -> Outcome:
    """Compare the last logits of rows that are padded on the left with those of each row alone."""
    model, ids = models.ours(), models.ids[:, :8].clone()
    mask, short = torch.ones_like(ids), ids[1:, 3:].clone()
    mask[1, :3], ids[1, :3] = 0, 0
    scale = models.expected.std()
    padded = model(ids, attention_mask=mask).logits[1, -1]
    error = float((padded - model(short).logits[0, -1]).abs().max() / scale)
    control = float((model(ids).logits[1, -1] - padded).abs().max() / scale)
    line = f"{error:.1e}, at most {FLOAT32:.0e}; without the mask {control:.2f}"
    return Outcome([require(error <= FLOAT32 < control, line)], {"error": error, "control": control})


def gradients(model: nn.Module, ids: torch.Tensor, **options: Any) -> tuple[float, list[torch.Tensor]]:
    """Return the loss on ids and the gradient of each parameter."""
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False, **options).loss
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest difference of gradients, of each parameter over the largest of its own.

    A gradient that is 0 but for rounding, such as that of the bias of keys, is measured by the largest of all.
    """
    least = NO_GRADIENT * max(one.abs().max() for one in expected)
    return max(
        float((one - other).abs().max() / other.abs().max().clamp(min=float(least)))
        for one, other in zip(found, expected, strict=True)
    )


def check_losses(models: Models, fused: bool) -> Outcome:
    """Compare the loss without logits, and its gradients, with those over all logits."""
    model = models.ours().train()
    loss, expected = gradients(model, models.ids)
    if fused:
        use_fused_loss(model)
    chunked, found = gradients(model, models.ids, skip_logits=True)
    _, others = gradients(model, models.ids.roll(1, dims=0)[:1], skip_logits=True)
    error, control = largest_difference(found, expected), largest_difference(others, expected)
    line = (
        f"loss {chunked:.6f} and {loss:.6f}, gradients {error:.1e}, at most {GRADIENT:.0e}; of one row {control:.1f}"
    )
    is_so = abs(chunked - loss) < GRADIENT and error <= GRADIENT < control
    return Outcome([require(is_so, line)], {"loss": chunked, "expected": loss, "error": error, "control": control})


def check_autocast(models: Models, dtype: torch.dtype) -> Outcome:
    """Compare the gradients of the fused loss under autocast with those in float32, by their direction."""
    model = models.ours().train()
    use_fused_loss(model)
    _, expected = gradients(model, models.ids, skip_logits=True)
    with torch.autocast(models.device, dtype):
        _, found = gradients(model, models.ids, skip_logits=True)
    cosine = nn.functional.cosine_similarity
    least = NO_GRADIENT * max(one.norm() for one in expected)  # below, there is no direction
    cosines = [
        float(cosine(one.flatten(), other.flatten(), dim=0))
        for one, other in zip(found, expected, strict=True)
        if other.norm() > least
    ]
    line = f"lowest cosine {min(cosines):.5f} of {len(cosines)} parameters, at least {COSINE}"
    return Outcome([require(min(cosines) >= COSINE, line)], {"cosine": min(cosines), "parameters": len(cosines)})


def check_checkpointing(models: Models) -> Outcome:
    """Compare the gradients with and without activations that are computed again, with dropout."""
    model = models.ours(dropout=0.1).train()

    def seeded() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return gradients(model, models.ids)[1]

    expected = seeded()
    torch.manual_seed(4)
    control = largest_difference(gradients(model, models.ids)[1], expected)
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before 5.23
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    error = largest_difference(seeded(), expected)
    line = f"gradients {error:.1e}, at most {GRADIENT:.0e}; other dropout {control:.1f}"
    return Outcome([require(error <= GRADIENT < control, line)], {"error": error, "control": control})


@torch.no_grad()
def check_int8(models: Models) -> Outcome:
    """Compare the logits with int8 weights on the CPU; on a GPU they must be refused in one line."""
    if models.device != "cpu":
        try:
            quantize_int8(models.ours())
        except ValueError as refusal:
            require("on a CPU" in str(refusal), f"another refusal: {refusal}")
        else:
            raise ValueError("int8 weights were not refused on a GPU")
    model: Any = models.ours()
    model = quantize_int8(model.to("cpu"))
    error = models.error(model(models.ids.cpu()).logits.to(models.device))
    control = models.error(model(models.ids.roll(1, dims=1).cpu()).logits.to(models.device))
    line = f"{error:.1e} on the CPU, at most {INT8}; other tokens {control:.1f}"
    return Outcome([require(0 < error <= INT8 and control > VISIBLE, line)], {"error": error, "control": control})

"""Proof of resuming: six steps in one go, and three and three, end in the same weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_gpt_scratch.training.loop import train
from scripts.benchmarks.peer_models import Task
from scripts.benchmarks.training_steps import our_settings

from .plan import Plan
from .record import Outcome


TOLERANCE = 1e-5  # of a weight, where kernels are not deterministic
STEPS = 6
SMALL = {"layers": 2, "width": 64, "heads": 2, "context": 64, "rows": 2, "length": 64, "precision": "no"}


def resume_proofs(plan: Plan, folder: Path) -> dict[str, Callable[[], Outcome]]:
    """Return the proof by name."""
    return {"resume": partial(check_resume, plan, folder)}


def check_resume(plan: Plan, folder: Path) -> Outcome:
    """Train with deterministic kernels where PyTorch has them, with dropout, and compare to the last bit."""
    task = Task(**plan.task_fields(str(folder)) | SMALL)
    text = "".join(f"word {number * number} " for number in range(150))
    (folder / "text.txt").write_text(text, encoding="utf-8")

    def weights(name: str, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        settings = our_settings(
            task, folder, output_dir=str(folder / name), max_steps=steps, resume=resume, dropout=0.1, warmup_steps=1,
            lr_scheduler_type="constant", save_steps=0, vocabulary="bytes",
            initial_eval_iter=1, eval_iter=1, learning_rate=1e-3,
        )  # fmt: skip
        return load_file(train(settings).repository / "model.safetensors")

    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = weights("whole", STEPS)
        half = weights("parts", STEPS // 2)
        resumed = weights("parts", STEPS, resume=True)
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    error, control = largest_difference(resumed, whole), largest_difference(half, whole)
    if not error <= TOLERANCE < control:
        raise ValueError(
            f"weights differ by {error:.1e}, at most {TOLERANCE:.0e}; three steps before by {control:.1e}"
        )
    exact = "bit for bit" if error == 0 else f"to {error:.1e}, not bit for bit"
    return Outcome([f"{exact}; three steps before, weights differ by {control:.1e}"], {"error": error})


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of weights."""
    return max(float((found[name] - weight).abs().max()) for name, weight in expected.items())

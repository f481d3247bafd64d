"""The candidates of the training benchmark: our step and that of each peer, from the same weights and tokens.

A step is forward, backward, clipping of the whole gradient to norm 1, and AdamW, in float32 or in PyTorch's autocast
to bf16. Every candidate runs in a process of its own (`workers`) and gives back the losses of its first steps: where
the architecture is the same, equal losses show that it did the same work.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from .peer_models import VOCAB_SIZE, Task, litgpt_model, nanogpt_model, stock_model, tutorial_model


if TYPE_CHECKING:
    from hf_gpt_scratch.training.run import Run
    from hf_gpt_scratch.training.settings import TrainingSettings

# Token ids and targets, both [rows, length] -> loss: a number where the loop reads it, else a tensor of one.
Step = Callable[[torch.Tensor, torch.Tensor], float | torch.Tensor]
Fields = dict[str, Any]  # of `Task`, as JSON brings them
Work = Callable[[], dict[str, Any]]

LEARNING_RATE = 1e-4
ADAMW: dict[str, Any] = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
MAX_NORM = 1.0
NUM_LOSSES = 3  # that are shown and compared: those of the first steps


def draw_tokens(task: Task, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and targets of a step, both [rows, length]: the same for every candidate."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(task.vocab_size, (task.rows, task.length + 1), generator=generator).to(task.device)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def numbered(task: Task, step: Step) -> Work:
    """Return the work of a sample: the next step, on the next tokens."""
    losses: list[float] = []

    def work() -> dict[str, Any]:
        losses.append(round(float(step(*draw_tokens(task, len(losses)))), 6))
        return {"losses": losses[:NUM_LOSSES]}

    return work


def make_product(size: int, times: int, dtype: str = "float32") -> Work:
    """Multiply two square matrices, large enough for the machine's full speed."""
    matrix = torch.rand(size, size).to(getattr(torch, dtype))
    out = torch.empty_like(matrix)

    def work() -> dict[str, Any]:
        for _ in range(times):
            torch.mm(matrix, matrix, out=out)
        return {}

    return work


def our_run(task: Task, **settings: Any) -> "Run":
    """Set up a run as `scripts/train.py` does it, with the initial weights."""
    from hf_gpt_scratch import registration  # noqa: F401 makes the classes known
    from hf_gpt_scratch.runtime.signals import StopSignals
    from hf_gpt_scratch.runtime.stopwatch import Stopwatch
    from hf_gpt_scratch.training.build import set_up
    from hf_gpt_scratch.training.checkpoints.output_folder import FolderLock

    folder = Path(tempfile.mkdtemp(dir=task.folder))
    # So many windows that the batch is not cut.
    (folder / "text.txt").write_text("word " * 2 * task.context * task.rows, encoding="utf-8")
    with FolderLock(folder / "run") as lock:
        run = set_up(our_settings(task, folder, **settings), lock, StopSignals(), Stopwatch())
    weights = load_file(task.weights)
    with torch.no_grad():
        for name, parameter in run.bare_model.named_parameters():
            parameter.copy_(weights.pop(name))
    return run


def our_settings(task: Task, folder: Path, **settings: Any) -> "TrainingSettings":
    """Return the settings of a run on `text.txt` of a folder, with the changes that are given."""
    from hf_gpt_scratch.training.settings import TrainingSettings

    values = {
        "train_file": [str(folder / "text.txt")],
        "output_dir": str(folder / "run"),
        "vocabulary": "gpt2" if task.vocab_size == VOCAB_SIZE else "bytes",
        "hidden_size": task.width,
        "num_hidden_layers": task.layers,
        "num_attention_heads": task.heads,
        "max_position_embeddings": task.context,
        "block_size": task.length,
        "per_device_train_batch_size": task.rows,
        "dropout": 0.0,
        "max_grad_norm": MAX_NORM,
        "weight_decay": ADAMW["weight_decay"],
        "sample_tokens": 0,
        "mixed_precision": task.precision,
        "use_cpu": task.device == "cpu",
        "peak_flops": 1e12,  # not measured here
    }
    return TrainingSettings(**values | settings)


def our_step(run: "Run") -> Step:
    """Return the optimizer step of our training loop."""
    from hf_gpt_scratch.data.windows import IGNORE_INDEX
    from hf_gpt_scratch.training.loop import optimizer_step
    from hf_gpt_scratch.training.optim import set_learning_rate

    def step(ids: torch.Tensor, targets: torch.Tensor) -> float:
        batch = {"input_ids": ids, "shift_labels": targets}
        set_learning_rate(run.optimizer, LEARNING_RATE)
        num_tokens = run.accelerator.reduce((targets != IGNORE_INDEX).sum(), "sum")  # as the loop counts them
        return optimizer_step(run, batch, num_tokens)[0]

    return step


def make_ours(task_fields: Fields, **settings: Any) -> Work:
    """Take the optimizer step of our training loop, in a run that is set up as `scripts/train.py` does it."""
    task = Task(**task_fields)
    return numbered(task, our_step(our_run(task, **settings)))


def plain_step(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[..., torch.Tensor]
) -> Step:
    """Return a step as the peers' own loops write it; they read the loss of some steps only."""

    def step(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16"):
            loss = loss_of(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def nanogpt_step(task: Task, source: Path, backend: str | None = None, vocab_size: int = VOCAB_SIZE) -> Step:
    """Return a step of nanoGPT with its own optimizer, compiled by a backend or not."""
    model = nanogpt_model(task, source, vocab_size).to(task.device)
    optimizer = model.configure_optimizers(ADAMW["weight_decay"], LEARNING_RATE, ADAMW["betas"], task.device)
    called = torch.compile(model, backend=backend) if backend else model
    return plain_step(task, model, optimizer, lambda ids, targets: called(ids, targets)[1])


def make_nanogpt(task_fields: Fields, source: str, compiled: bool = False) -> Work:
    """Train nanoGPT with its own optimizer."""
    task = Task(**task_fields)
    return numbered(task, nanogpt_step(task, Path(source), "inductor" if compiled else None))


def stock_step(task: Task, backend: str | None = None) -> Step:
    """Return a step of transformers' GPT-2, compiled by a backend or not.

    AdamW is PyTorch's default on a CPU; on a GPU it is the fused one, which is the Trainer's.
    """
    model: Any = stock_model(task)
    model.to(task.device)
    called = torch.compile(model, backend=backend) if backend else model
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW, fused=None if task.device == "cpu" else True)
    loss_of = lambda ids, targets: called(ids, labels=targets, shift_labels=targets).loss  # noqa: E731
    return plain_step(task, model, optimizer, loss_of)


def make_transformers(task_fields: Fields, compiled: bool = False) -> Work:
    """Train transformers' GPT-2 in a plain loop with PyTorch's default AdamW."""
    task = Task(**task_fields)
    return numbered(task, stock_step(task, "inductor" if compiled else None))


def make_trainer(task_fields: Fields) -> Work:
    """Train transformers' GPT-2 with its Trainer, whose loop runs in a thread that waits before each step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    task, go, done = Task(**task_fields), threading.Semaphore(0), threading.Semaphore(0)
    losses: list[float] = []

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            step = 0
            while True:
                for ids, targets in zip(*draw_tokens(task, step), strict=True):
                    yield {"input_ids": ids, "labels": targets, "shift_labels": targets}
                step += 1

    class Gate(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **kwargs: Any) -> None:
            go.acquire()

        def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
            done.release()

    class TrainerWithLosses(Trainer):
        def training_step(self, *arguments: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*arguments, **kwargs)
            losses.append(round(loss.item(), 6))
            return loss

    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=task.folder),
        per_device_train_batch_size=task.rows,
        max_steps=10**6,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=ADAMW["weight_decay"],
        max_grad_norm=MAX_NORM,
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=task.precision == "bf16",
    )
    trainer = TrainerWithLosses(stock_model(task), settings, train_dataset=Rows(), callbacks=[Gate()])

    def train() -> None:
        try:
            trainer.train()
        finally:
            os._exit(1)  # it has no end of its own: the process that waits for a step must not wait for ever

    threading.Thread(target=train, daemon=True).start()

    def work() -> dict[str, Any]:
        go.release()
        done.acquire()
        return {"losses": losses[:NUM_LOSSES]}

    return work


def make_litgpt(task_fields: Fields) -> Work:
    """Train litgpt's GPT with its own loss."""
    from litgpt.utils import chunked_cross_entropy

    task = Task(**task_fields)
    model = litgpt_model(task)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    return numbered(task, plain_step(task, model, optimizer, lambda ids, to: chunked_cross_entropy(model(ids), to)))


def make_tutorial(task_fields: Fields) -> Work:
    """Train chapter 4's model of the tutorial's package."""
    from llms_from_scratch.ch04 import GPTModel
    from llms_from_scratch.ch05 import calc_loss_batch

    task = Task(**task_fields)
    model = tutorial_model(task, GPTModel)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    return numbered(task, plain_step(task, model, optimizer, partial(calc_loss_batch, model=model, device="cpu")))

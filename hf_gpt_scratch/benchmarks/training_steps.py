"""The contestants of the training benchmark: one step of ours and of each peer, from the same weights and tokens.

A step is forward, backward, clipping of the whole gradient to norm 1, and AdamW, in float32. Every contestant runs in
a process of its own (`workers`) and gives back the losses of its first steps: where the architecture is the same,
equal losses show that it did the same work.
"""

import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


Step = Callable[[torch.Tensor, torch.Tensor], float]  # token ids and targets, both [rows, length] -> loss
Work = Callable[[], dict[str, Any]]

VOCAB_SIZE = 50257
LEARNING_RATE = 1e-4
ADAMW = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
MAX_NORM = 1.0
NUM_LOSSES = 3  # that are shown and compared: those of the first steps


@dataclass(frozen=True)
class Task:
    """What a step works on: the size of the model, the batch, and a folder with the initial weights."""

    layers: int
    width: int
    heads: int
    context: int
    rows: int
    length: int
    folder: str = ""

    @property
    def weights(self) -> Path:
        """The file of the initial weights, under the names of our model."""
        return Path(self.folder) / "weights.safetensors"


# Our module -> that of GPT-2 in nanoGPT and transformers, of litgpt and of the tutorial. What has the same place there
# is joined, in this order.
OUTSIDE = {
    "model.embed_tokens": ("transformer.wte", "transformer.wte", "tok_emb"),
    "model.embed_positions": ("transformer.wpe", None, "pos_emb"),
    "model.norm": ("transformer.ln_f", "transformer.ln_f", "final_norm"),
}
LAYERS = ("model.layers", ("transformer.h", "transformer.h", "trf_blocks"))
INSIDE = {
    "input_layernorm": ("ln_1", "norm_1", "norm1"),
    "self_attn.q_proj": ("attn.c_attn", "attn.qkv", "att.W_query"),
    "self_attn.k_proj": ("attn.c_attn", "attn.qkv", "att.W_key"),
    "self_attn.v_proj": ("attn.c_attn", "attn.qkv", "att.W_value"),
    "self_attn.o_proj": ("attn.c_proj", "attn.proj", "att.out_proj"),
    "post_attention_layernorm": ("ln_2", "norm_2", "norm2"),
    "mlp.up_proj": ("mlp.c_fc", "mlp.fc", "ff.layers.0"),
    "mlp.down_proj": ("mlp.c_proj", "mlp.proj", "ff.layers.2"),
}
GPT2, LITGPT, TUTORIAL = range(3)


def draw_weights(task: Task, seed: int) -> None:
    """Write initial weights; biases and LayerNorms are drawn too, so that one in the wrong place changes the loss."""
    from hf_gpt_scratch.model import GPTScratchConfig, GPTScratchForCausalLM

    config = GPTScratchConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=task.width,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        max_position_embeddings=task.context,
    )
    torch.manual_seed(seed)
    weights = dict(GPTScratchForCausalLM(config).named_parameters())
    with torch.no_grad():
        for weight in weights.values():
            if weight.ndim == 1:
                weight += torch.randn_like(weight) * 0.02
    save_file(weights, task.weights)


def draw_tokens(task: Task, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets of a step, both [rows, length]: the same for every contestant."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCAB_SIZE, (task.rows, task.length + 1), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def renamed(task: Task, peer: int) -> dict[str, torch.Tensor]:
    """The initial weights as a peer's state dict."""
    names = {ours: theirs[peer] for ours, theirs in OUTSIDE.items() if theirs[peer] is not None}
    for layer in range(task.layers):
        prefixes = f"{LAYERS[0]}.{layer}", f"{LAYERS[1][peer]}.{layer}"
        names |= {f"{prefixes[0]}.{ours}": f"{prefixes[1]}.{theirs[peer]}" for ours, theirs in INSIDE.items()}
    weights, parts = load_file(task.weights), {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in weights:
                parts.setdefault(f"{theirs}.{kind}", []).append(weights[f"{ours}.{kind}"])
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def load(model: nn.Module, state: dict[str, torch.Tensor], may_lack: str = "no parameter") -> None:
    """Put a state dict into a model.

    Raises:
        ValueError: the model has parameters that are not in it, other than those of the module `may_lack`.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    buffers = {name for name, _ in model.named_buffers()}
    if lacking := [name for name in missing if name not in buffers and not name.startswith(may_lack)] + unexpected:
        raise ValueError(f"the weights do not fit {type(model).__name__}: {', '.join(lacking[:3])}")


def numbered(task: Task, step: Step) -> Work:
    """The work of a sample: the next step, on the next tokens."""
    losses: list[float] = []

    def work() -> dict[str, Any]:
        losses.append(round(step(*draw_tokens(task, len(losses))), 6))
        return {"losses": losses[:NUM_LOSSES]}

    return work


def make_product(size: int, times: int) -> Work:
    """What the machine can do: products of two square matrices, large enough for its full speed."""
    matrix = torch.rand(size, size)
    out = torch.empty_like(matrix)

    def work() -> dict[str, Any]:
        for _ in range(times):
            torch.mm(matrix, matrix, out=out)
        return {}

    return work


def make_ours(task: dict[str, Any], **settings: Any) -> Work:
    """The optimizer step of our training loop, in a run that is set up as `scripts/train.py` does it."""
    from hf_gpt_scratch import registration  # noqa: F401 a worker starts without it
    from hf_gpt_scratch.training.loop import optimizer_step
    from hf_gpt_scratch.training.output_folder import FolderLock
    from hf_gpt_scratch.training.run import set_up
    from hf_gpt_scratch.training.settings import TrainingSettings

    task = Task(**task)
    folder = Path(tempfile.mkdtemp(dir=task.folder))
    (folder / "text.txt").write_text("word " * 2 * task.context, encoding="utf-8")
    values = {
        "train_file": [str(folder / "text.txt")],
        "output_dir": str(folder / "run"),
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
        "peak_flops": 1e12,  # not measured here
    }
    with FolderLock(folder / "run") as lock:
        run = set_up(TrainingSettings(**values | settings), lock)
    weights = load_file(task.weights)
    with torch.no_grad():
        for name, parameter in run.bare_model.named_parameters():
            parameter.copy_(weights.pop(name))

    def step(ids: torch.Tensor, targets: torch.Tensor) -> float:
        batch = {"input_ids": ids, "shift_labels": targets}
        return optimizer_step(run, batch, targets.numel(), LEARNING_RATE)[0]

    return numbered(task, step)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[..., torch.Tensor]) -> Step:
    """A step as the peers' own loops write it."""

    def step(ids: torch.Tensor, targets: torch.Tensor) -> float:
        loss = loss_of(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def make_nanogpt(task: dict[str, Any], source: str, compiled: bool = False) -> Work:
    """NanoGPT with GPT-2's vocabulary and form of GELU, so that its loss is the same; its own optimizer."""
    task, module = Task(**task), import_file(Path(source) / "model.py")
    sizes = {"n_layer": task.layers, "n_head": task.heads, "n_embd": task.width, "block_size": task.context}
    model = module.GPT(module.GPTConfig(vocab_size=VOCAB_SIZE, **sizes))
    for block in model.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    load(model, renamed(task, GPT2), may_lack="lm_head")
    optimizer = model.configure_optimizers(ADAMW["weight_decay"], LEARNING_RATE, ADAMW["betas"], "cpu")
    called = torch.compile(model) if compiled else model
    return numbered(task, plain_step(model, optimizer, lambda ids, targets: called(ids, targets)[1]))


def import_file(path: Path) -> ModuleType:
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stock_model(task: Task) -> nn.Module:
    """GPT-2 of transformers without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": task.layers, "n_head": task.heads, "n_embd": task.width, "n_positions": task.context}
    config = GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    model = GPT2LMHeadModel(config).train()
    is_turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # its layers keep them as [in, out]
    state = renamed(task, GPT2).items()
    load(model, {name: tensor.T if name.endswith(is_turned) else tensor for name, tensor in state}, "lm_head")
    return model


def make_transformers(task: dict[str, Any], compiled: bool = False) -> Work:
    """GPT-2 of transformers in a plain loop with PyTorch's default AdamW."""
    task = Task(**task)
    model = stock_model(task)
    called = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    loss_of = lambda ids, targets: called(ids, labels=targets, shift_labels=targets).loss  # noqa: E731
    return numbered(task, plain_step(model, optimizer, loss_of))


def make_trainer(task: dict[str, Any]) -> Work:
    """GPT-2 of transformers under its Trainer, whose loop runs in a thread that waits before each step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    task, go, done = Task(**task), threading.Semaphore(0), threading.Semaphore(0)
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


def make_litgpt(task: dict[str, Any]) -> Work:
    """GPT of litgpt in the same sizes, its head tied; it rotates where GPT-2 has learned positions."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    task = Task(**task)
    sizes = {"n_layer": task.layers, "n_head": task.heads, "n_embd": task.width, "block_size": task.context}
    form = {"bias": True, "parallel_residual": False, "gelu_approximate": "tanh", "rotary_percentage": 1.0}
    model = GPT(Config(vocab_size=VOCAB_SIZE, padded_vocab_size=VOCAB_SIZE, **sizes, **form))
    model.lm_head.weight = model.transformer.wte.weight
    load(model, renamed(task, LITGPT), may_lack="lm_head")
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    return numbered(task, plain_step(model, optimizer, lambda ids, to: chunked_cross_entropy(model(ids), to)))


def make_tutorial(task: dict[str, Any]) -> Work:
    """Chapter 4's model of the tutorial's package; its head is a matrix of its own, with the same first values."""
    from llms_from_scratch.ch04 import GPTModel
    from llms_from_scratch.ch05 import calc_loss_batch

    task = Task(**task)
    sizes = {"n_layers": task.layers, "n_heads": task.heads, "emb_dim": task.width, "context_length": task.context}
    model = GPTModel({"vocab_size": VOCAB_SIZE, "drop_rate": 0.0, "qkv_bias": True, **sizes})
    state = renamed(task, TUTORIAL)
    norms = {"weight": "scale", "bias": "shift"}
    for name in [name for name in state if "norm" in name]:
        module, _, kind = name.rpartition(".")
        state[f"{module}.{norms[kind]}"] = state.pop(name)
    load(model, state | {"out_head.weight": state["tok_emb.weight"]})
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    return numbered(task, plain_step(model, optimizer, partial(calc_loss_batch, model=model, device="cpu")))

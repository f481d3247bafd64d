"""A run as it was built: text, model, optimizer and output folder, prepared by Accelerate."""

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.data.vocabulary import Vocabulary
from hf_gpt_scratch.data.windows import StepSampler, TokenWindows, draw_like_torch_loader, epoch_order_seed
from hf_gpt_scratch.evaluation import bits_per_byte
from hf_gpt_scratch.runtime.environment import describe_device, describe_processor, key_versions
from hf_gpt_scratch.runtime.files import write_file
from hf_gpt_scratch.runtime.signals import StopSignals
from hf_gpt_scratch.runtime.stopwatch import Stopwatch
from hf_gpt_scratch.training.base_model import BaseModel
from hf_gpt_scratch.training.checkpoints.checkpoint import (
    PREFIX,
    SavedState,
    load_weights,
    remove_old_checkpoints,
    save_checkpoint,
)
from hf_gpt_scratch.training.checkpoints.manifest import digest, find_corruption
from hf_gpt_scratch.training.command_line import settings_json
from hf_gpt_scratch.training.distributed import on_main_process
from hf_gpt_scratch.training.optimizer_in_backward import StepsInBackward
from hf_gpt_scratch.training.plan import EvaluationPlan
from hf_gpt_scratch.training.progress import Progress
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.reporting.hub_pushes import BackgroundPushes
from hf_gpt_scratch.training.reporting.loss_plot import LossPlot
from hf_gpt_scratch.training.reporting.mfu import ModelFlops
from hf_gpt_scratch.training.settings import FRESH_ARCHITECTURE, TrainingSettings
from hf_gpt_scratch.training.speed import Speed


if TYPE_CHECKING:
    from hf_gpt_scratch.data.tokenizer import AnyTokenizer


Part = TypeVar("Part")

# The fields in the hash of every run. One that was added since counts where it is not the default, so that the
# checkpoints of before keep their hash.
HASHED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_act"),
    *("qkv_bias", "tie_word_embeddings", "vocab_size", "intermediate_size", "layer_norm_eps"),
)


@dataclass(frozen=True)
class Texts:
    """The tokens of a run in windows, and what texts are encoded with."""

    encoding: "AnyTokenizer"
    vocabulary: Vocabulary | None  # None: a base model's tokenizer that tiktoken cannot stand for
    train: TokenWindows
    validation: TokenWindows
    sha256: str  # of the token ids of both, so that a resume can compare them
    bytes_per_token: float | None  # of the validation text; None: the vocabulary is not known


@dataclass(frozen=True)
class Parts(Generic[Part]):
    """One for each text that is passed over: to train on, to evaluate the training text, and to validate on."""

    train: Part
    train_eval: Part
    validation: Part


@dataclass(frozen=True)
class Run:
    """Everything the loop works with; `model` and the loaders as Accelerate prepared them."""

    settings: TrainingSettings
    accelerator: Accelerator
    base: BaseModel | None
    texts: Texts
    model: nn.Module
    optimizer: Optimizer  # in Accelerate's wrapper where gradients are scaled, else PyTorch's own
    loaders: Parts[DataLoader]  # a batch to train on is this process's share of one optimizer step
    samplers: Parts[StepSampler]  # of all processes, before Accelerate split them
    evaluation_plan: EvaluationPlan
    expected_steps: int  # optimizer steps; where minutes bound the run, as they were estimated before the first
    speed: Speed  # measured before the first step
    stopwatch: Stopwatch
    flops: ModelFlops
    cpu_speedups: list[str]  # those that are on, each with its reason
    steps_in_backward: StepsInBackward | None
    history: History
    loss_plot: LossPlot
    signals: StopSignals
    progress: Progress = field(default_factory=Progress)
    pushes: BackgroundPushes = field(default_factory=BackgroundPushes)
    started: float = field(default_factory=time.perf_counter)

    @property
    def output_dir(self) -> Path:
        """Folder of everything the run writes."""
        return Path(self.settings.output_dir)

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the checkpoints."""
        return self.output_dir / "checkpoints"

    @property
    def num_steps(self) -> int:
        """The optimizer steps of the run, by what is known now."""
        return self.progress.planned_steps or self.expected_steps

    @property
    def start_seconds(self) -> float:
        """The seconds from the start of the process until the run was built."""
        return self.started - self.stopwatch.begun

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the result: a base model's own."""
        if self.base is not None:
            return self.base.tokenizer
        return build_tokenizer(self.settings.context, self.texts.vocabulary or "gpt2")

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the prepared model, in its order."""
        return list(self.model.parameters())

    @property
    def bare_model(self) -> PreTrainedModel:
        """The model without the wrappers of Accelerate and torch.compile."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def epoch(self) -> float:
        """Epochs done, such as 1.5."""
        return self.progress.global_step / len(self.samplers.train)

    @property
    def sharding(self) -> str:
        """The way weights and optimizer state are sharded over the processes."""
        return "FSDP2" if self.accelerator.is_fsdp2 else "none"

    def in_bits_per_byte(self, validation_loss: float) -> dict[str, float]:
        """Return a validation loss as the history's figure in bits per byte; none if the bytes are not known."""
        length = self.texts.bytes_per_token
        return {} if length is None else {"bits_per_byte": bits_per_byte(validation_loss, length)}

    def say(self, line: str) -> None:
        """Print a line, on the main process only; Accelerate's own `print` does so on every node."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def write_settings(self) -> None:
        """Write the settings as a file that `--config` reads back; main process only."""
        write_file(self.output_dir / "settings.json", settings_json(self.settings))

    def start_epoch(self) -> None:
        """Put the training windows into the order of this epoch, after the steps of it that are done."""
        progress = self.progress
        if progress.order_seed is None:
            progress.order_seed = self._draw_order_seed(progress.epoch)
        self.samplers.train.order_seed = progress.order_seed
        self.samplers.train.first_step = progress.step_in_epoch

    def shuffle_train_eval(self) -> None:
        """Draw the order of the training windows for an evaluation."""
        self.samplers.train_eval.order_seed = self._draw_order_seed(None)

    def _draw_order_seed(self, epoch: int | None) -> int:
        if self.settings.data_order == "seeded":
            return epoch_order_seed(self.settings.seed, 0 if epoch is None else epoch)
        seed = torch.tensor(draw_like_torch_loader(shuffle=True), device=self.accelerator.device)
        # Each process draws from its own generator: the main one's order holds for all.
        return int(broadcast(seed) if self.accelerator.num_processes > 1 else seed)

    def save(self) -> Path:
        """Save a checkpoint of this moment, then delete old ones. Collective: call on every process."""
        before = self.stopwatch.parts["checkpoints"]
        with self.stopwatch.part("checkpoints"):
            self.progress.history_bytes, self.progress.history_sha256 = self.history.mark()
            saved = self.saved_state()
            path = save_checkpoint(self.checkpoint_dir, self.accelerator, self.bare_model, self.optimizer, saved)
            keep, best_step = self.settings.save_total_limit, self.progress.best_step
            on_main_process(self.accelerator, lambda: remove_old_checkpoints(path, keep, best_step))
        if self.settings.minutes is not None:
            self.progress.note_saving(self.stopwatch.parts["checkpoints"] - before)
        return path

    def saved_state(self) -> SavedState:
        """Collect what a checkpoint holds besides weights and optimizer state."""
        scaler = self.accelerator.scaler
        return SavedState(
            progress=self.progress,
            settings=self.settings.to_dict(),
            num_processes=self.accelerator.num_processes,
            num_threads=torch.get_num_threads(),
            grad_scaler=scaler.state_dict() if scaler is not None else None,
            environment={
                **key_versions(),
                "device": describe_device(self.accelerator.device),
                **({"processor": describe_processor()} if self.accelerator.device.type == "cpu" else {}),
                "sharding": self.sharding,
            },
            text_sha256=self.texts.sha256,
            model_sha256=model_sha256(self.bare_model.config),
            vocabulary_sha256=self.texts.vocabulary.sha256 if self.texts.vocabulary else "",
        )

    def load_best_weights(self) -> None:
        """Load the weights of the best evaluation, if the settings ask for it. Collective: call on every process."""
        step = self.progress.best_step
        if step is None or step == self.progress.global_step:
            return
        path = self.checkpoint_dir / f"{PREFIX}{step:08d}"
        fault = on_main_process(self.accelerator, lambda: find_corruption(path))
        if fault is not None:
            self.say(f"warning: {path}, the best checkpoint, cannot be used ({fault}): keeping the last weights")
            return
        load_weights(path, self.bare_model)
        self.progress.set_losses(None)
        self.say(f"took the weights of {path}: validation loss {self.progress.best_validation_loss:.3f}")


def model_sha256(config: PreTrainedConfig) -> str:
    """Hash everything that decides what the weights of a model compute."""
    values = {name: getattr(config, name) for name in (*HASHED, *FRESH_ARCHITECTURE)}
    return digest(
        {name: value for name, value in values.items() if name in HASHED or value != FRESH_ARCHITECTURE[name]}
    )

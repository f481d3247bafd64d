"""All settings of a training run, each declared once with its default, unit and rule."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.hub.push import check_names
from hf_gpt_scratch.runtime.cli import Range


if TYPE_CHECKING:
    from hf_gpt_scratch.model import GPTScratchConfig


PositiveInt = Annotated[int, Range(1, below=2**63)]
NonNegativeInt = Annotated[int, Range(0, below=2**63)]
Seconds = Annotated[int, Range(1, below=2**31)]
Seed = Annotated[int, Range(0, below=2**32)]  # numpy takes no other
NonNegativeFloat = Annotated[float, Range(0)]
UnitFloat = Annotated[float, Range(0, below=1)]

# Settings that an existing model brings with it, and the defaults of a fresh one.
FRESH_ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "norm_type": "layernorm",
    "qkv_bias": True,
    "tie_word_embeddings": True,
}
ARCHITECTURE = tuple(FRESH_ARCHITECTURE)
HEAD_WIDTH = 64  # GPT-2's, in all its sizes
# Settings that a run bounded by minutes may leave to `choose_settings.py`; the rates belong together.
RATES = ("optim", "muon_momentum", "learning_rate", "min_learning_rate", "lr_scheduler_type")
CHOSEN_BY_MINUTES = (
    *("vocabulary", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", *RATES),
    *("dropout", "load_best_model_at_end", "mixed_precision"),
)
WARMUP_STEPS = 20  # by default, in a run of at least twice as many
EVAL_STEPS, MAX_EVALUATIONS = 20, 50  # by default: the steps between evaluations, unless there would be more of them
# Trained on between evaluations and between checkpoints at least, but for the bundled texts. An evaluation scores
# eight windows of both texts at least, in the time of training on about six; a checkpoint takes that of about a
# thousand tokens, whatever the size of the model.
WINDOWS_BETWEEN, SAVE_STEPS, TOKENS_BETWEEN = 128, 100, 1 << 16
# Half as many windows between evaluations that score half as many: for 20 of them, in a run that is long enough for
# about as many. A shorter one has its fixed costs too.
MIN_EVALUATIONS, LEAST_WINDOWS_BETWEEN, WINDOWS_OF_SHORT_RUN = 20, WINDOWS_BETWEEN // 2, 1024


def setting(default: Any, help_text: str, may_change_on_resume: bool = False) -> Any:
    """Declare a field: its default, its meaning and unit as --help shows it, and its rule for resumed runs.

    A setting may change if no loss depends on it, or only those of the steps to come. `resume.py` compares what paths
    name by its hash, and of the two batch sizes their product with the number of processes.
    """
    return field(default=default, metadata={"help": help_text, "may_change_on_resume": may_change_on_resume})


@dataclass
class DataSettings:
    """The texts to train and validate on, and their windows."""

    _argument_group_name = "data"  # HfArgumentParser shows the flags of a class under it

    train_file: list[str] | None = setting(
        None,
        "texts to train on: files, or folders with .txt, .md, .jsonl, .ndjson and .parquet files, text and JSON lines "
        "also .gz or .zst; none: sample_text",
        may_change_on_resume=True,
    )
    text_column: str = setting("text", "key or column that holds the text in JSON lines and parquet")
    sample_text: Literal["story", "verdict"] = setting(
        "story", "the bundled story, or The Verdict, which is fetched", may_change_on_resume=True
    )
    train_data: str | None = setting(
        None, "instead: a folder of tokens made by hf-gpt-scratch prepare", may_change_on_resume=True
    )
    validation_file: list[str] | None = setting(
        None,
        "texts to validate on; none: split train_file, or the validation tokens of train_data",
        may_change_on_resume=True,
    )
    train_split: float = setting(0.9, "part of the characters to train on without a validation_file")
    block_size: PositiveInt | None = setting(None, "tokens of a training window; none: max_position_embeddings")
    separate_documents: bool = setting(
        False, "no attention across <|endoftext|>: documents in one window do not see each other"
    )
    drop_last: bool = setting(False, "leave out the last window and step of an epoch if they are not full")
    data_order: Literal["seeded", "torch_dataloader"] = setting(
        "seeded", "window order: from seed and epoch alone, or from the global generator as PyTorch's loader draws it"
    )


@dataclass
class ModelSettings:
    """Vocabulary, architecture and initial weights of the model, and its parts that are not trained."""

    _argument_group_name = "model"

    vocabulary: str | None = setting(
        None,
        "gpt2: GPT-2's 50,257 tokens; bytes: one token for each byte; or a folder made by hf-gpt-scratch "
        "train-tokenizer; none: that of model_name_or_path, or gpt2",
        may_change_on_resume=True,
    )
    model_name_or_path: str | None = setting(
        None,
        "model to start from, a folder or Hub name: it brings weights and architecture; none: fresh weights",
        may_change_on_resume=True,
    )
    hidden_size: PositiveInt | None = setting(
        None, "width of the residual stream; none: that of model_name_or_path, or 192"
    )
    num_hidden_layers: PositiveInt | None = setting(
        None, "number of decoder layers; none: that of model_name_or_path, or 4"
    )
    num_attention_heads: PositiveInt | None = setting(
        None,
        "number of attention heads of a layer; none: that of model_name_or_path, or 6 where that divides hidden_size, "
        "else as many as make a head about 64 wide",
    )
    max_position_embeddings: PositiveInt | None = setting(
        None, "longest context of the model in tokens; none: that of model_name_or_path, or 128"
    )
    hidden_act: str | None = setting(
        None,
        "activation of the MLP, a name of transformers' ACT2FN; none: that of model_name_or_path, or "
        "gelu_pytorch_tanh",
    )
    norm_type: Literal["layernorm", "rmsnorm"] | None = setting(
        None, "normalization of the layers; none: that of model_name_or_path, or layernorm"
    )
    dropout: UnitFloat = setting(0.1, "probability of zeroing an activation, at least 0 and below 1")
    qkv_bias: bool | None = setting(
        None, "give query, key and value projections a bias; none: as model_name_or_path has it, or true"
    )
    tie_word_embeddings: bool | None = setting(
        None, "use the token embedding as language-model head; none: as model_name_or_path has it, or true"
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = setting(
        "sdpa", "how attention is computed"
    )
    weight_init: Literal["gpt2", "torch"] = setting("gpt2", "fresh weights: GPT-2's, or PyTorch's layer defaults")
    freeze: list[str] | None = setting(
        None,
        "parts of the model that are not trained, by name, with * for any characters, such as model.embed_tokens or "
        "'model.layers.[0-3]'; none: all are trained",
    )


@dataclass
class LengthSettings:
    """The length of a run, and the settings that its minutes choose."""

    _argument_group_name = "length of the run"

    num_train_epochs: PositiveInt = setting(
        10, "passes over the training text; more of them continue a run", may_change_on_resume=True
    )
    max_steps: int = setting(
        -1, "optimizer steps to stop after; -1: as many as the epochs have", may_change_on_resume=True
    )
    minutes: Annotated[float, Range(0)] | None = setting(
        None,
        "minutes of wall time for the whole run, from its start to its result: they decide the steps, whatever the "
        "epochs; with --resume, those of all parts that had minutes; none: as many as the epochs have",
        may_change_on_resume=True,
    )
    choose: list[str] | None = setting(
        None,
        "settings that are chosen for the text, this machine and the minutes: "
        f"{', '.join(CHOSEN_BY_MINUTES)}; none: with minutes, but neither recipe nor model_name_or_path, on the "
        "command line those of them that are not given; the word none: no setting",
        may_change_on_resume=True,
    )


@dataclass
class OptimizationSettings:
    """Batch, optimizer and learning rate, and the steps that must not be applied."""

    _argument_group_name = "optimization"

    per_device_train_batch_size: PositiveInt = setting(
        2, "windows of a micro-batch on each device", may_change_on_resume=True
    )
    gradient_accumulation_steps: PositiveInt = setting(
        1, "micro-batches of an optimizer step", may_change_on_resume=True
    )
    learning_rate: NonNegativeFloat = setting(1.5e-3, "peak learning rate")
    min_learning_rate: NonNegativeFloat | None = setting(
        None, "learning rate at the end of a cosine or linear course; none: a tenth of learning_rate"
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = setting("cosine", "course of the rate after warm-up")
    warmup_steps: NonNegativeInt | None = setting(
        None, "optimizer steps of linear warm-up; none: 20, or half of a run of fewer than 40 steps"
    )
    weight_decay: NonNegativeFloat = setting(0.1, "decoupled weight decay per step, times the learning rate")
    decay_all_parameters: bool = setting(False, "decay biases, LayerNorms and embeddings too, not only matrices")
    optim: Literal["adamw_torch_fused", "adamw_torch", "muon"] = setting(
        "adamw_torch_fused", "AdamW in one kernel or step by step, or Muon for the matrices of the layers"
    )
    muon_momentum: UnitFloat = setting(0.95, "decay of Muon's momentum, at least 0 and below 1")
    adam_beta1: UnitFloat = setting(0.9, "decay of AdamW's first moment, at least 0 and below 1")
    adam_beta2: UnitFloat = setting(0.999, "decay of AdamW's second moment, at least 0 and below 1")
    adam_epsilon: NonNegativeFloat = setting(1e-8, "added to the root of AdamW's second moment")
    max_grad_norm: NonNegativeFloat = setting(1.0, "clip the norm of the whole gradient to this; 0: never")
    on_bad_step: Literal["stop", "skip"] = setting(
        "stop",
        "what to do at a step whose loss or gradient is not finite or a spike: stop the run, or skip the step",
        may_change_on_resume=True,
    )
    spike_threshold: NonNegativeFloat = setting(
        0.0,
        "standard deviations over the last 128 steps' mean that make a loss or gradient norm a spike; 0: none",
        may_change_on_resume=True,
    )
    seed: Seed = setting(42, "of weights, window order and dropout")


@dataclass
class DeviceSettings:
    """The device, and the precision, speed and memory of a run on it."""

    _argument_group_name = "device, precision, speed and memory"

    use_cpu: bool = setting(False, "train on the CPU even if there is a GPU")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = setting(
        None,
        "precision of products; auto: bf16 where they are measured to be clearly faster in it; none: as accelerate "
        "launch says",
    )
    weights_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "dtype in which weights and optimizer state are kept and stepped, however a base model is stored"
    )
    result_dtype: Literal["float32", "bfloat16", "float16"] | None = setting(
        None, "dtype of the weights in the result; none: as they were trained", may_change_on_resume=True
    )
    chunked_loss: bool = setting(
        True, "compute the loss a chunk of tokens at a time, never all logits; off: as one product"
    )
    cpu_speedups: bool = setting(
        True,
        "faster attention with dropout, and fewer threads where those are faster, on a CPU; off: PyTorch's own, which "
        "draws other numbers",
    )
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass to save memory")
    optimizer_in_backward: bool = setting(
        False,
        "step each parameter in the backward pass to save memory; needs max_grad_norm 0 and one micro-batch",
        may_change_on_resume=True,
    )
    torch_compile: bool = setting(False, "compile the model with torch.compile")
    peak_flops: Annotated[float, Range(1)] | None = setting(
        None, "FLOP/s of one device, for the MFU; none: measured with a matrix product", may_change_on_resume=True
    )
    ddp_timeout: Seconds = setting(
        600, "seconds after which a process gives up waiting for the others", may_change_on_resume=True
    )


@dataclass
class EvaluationSettings:
    """Evaluations and samples during a run."""

    _argument_group_name = "evaluation and samples"

    eval_steps: PositiveInt | None = setting(
        None,
        "optimizer steps between evaluations; none: 20, or a fiftieth of a longer run, or more where steps are small",
        may_change_on_resume=True,
    )
    eval_iter: NonNegativeInt | None = setting(
        None,
        "batches per evaluated loss, the first ones; 0: the whole validation text; none: windows spread over it, as "
        "many as take a small part of the run",
        may_change_on_resume=True,
    )
    initial_eval_iter: NonNegativeInt | None = setting(
        None, "the same for the evaluation before the first step; none: eval_iter", may_change_on_resume=True
    )
    eval_first_step: bool = setting(False, "count eval_steps from the first step, as the tutorial does")
    sample_prompt: str = setting("The lamp", "start of the sample written after every epoch")
    sample_tokens: NonNegativeInt = setting(40, "tokens of that sample, greedy; 0: no sample")


@dataclass
class CheckpointSettings:
    """The output folder, its checkpoints, and the continuation from them."""

    _argument_group_name = "output, checkpoints and resume"

    output_dir: str = setting(
        "runs/gpt-scratch", "new folder for everything the run writes", may_change_on_resume=True
    )
    dry_run: bool = setting(
        False, "say sizes, steps, memory and time, and stop without writing anything", may_change_on_resume=True
    )
    save_steps: NonNegativeInt | None = setting(
        None,
        "optimizer steps between checkpoints; 0: only at the end; none: 100, or more where steps are small",
        may_change_on_resume=True,
    )
    save_total_limit: PositiveInt = setting(2, "newest checkpoints to keep", may_change_on_resume=True)
    load_best_model_at_end: bool = setting(
        False, "save at each lowest validation loss too, keep that checkpoint, and build the result from it"
    )
    resume: bool = setting(False, "continue from the newest valid checkpoint in output_dir", may_change_on_resume=True)


@dataclass
class SharingSettings:
    """Trackers of the run, and pushes to the Hub."""

    _argument_group_name = "trackers and Hub"

    report_to: list[str] | None = setting(
        None,
        "trackers of Accelerate, such as tensorboard; all: those that are installed; none: no tracker",
        may_change_on_resume=True,
    )
    license: str | None = setting(
        None,
        "license of the weights for the model card, as the Hub calls it, such as apache-2.0; none: none is named",
        may_change_on_resume=True,
    )
    push_to_hub: str | None = setting(None, "USER/NAME of a Hub repository for the result", may_change_on_resume=True)
    hub_private_repo: bool = setting(False, "make that repository a private one", may_change_on_resume=True)
    hub_revision: str = setting("main", "its branch for the result", may_change_on_resume=True)
    push_steps: NonNegativeInt = setting(
        0, "optimizer steps between pushes of the unfinished model; 0: none of it", may_change_on_resume=True
    )
    push_steps_revision: str = setting("in-training", "branch for the unfinished model", may_change_on_resume=True)
    push_timeout: Seconds = setting(
        6 * 3600, "seconds after which a push is given up; the run continues", may_change_on_resume=True
    )


@dataclass
class TrainingSettings(
    SharingSettings,
    CheckpointSettings,
    EvaluationSettings,
    DeviceSettings,
    OptimizationSettings,
    LengthSettings,
    ModelSettings,
    DataSettings,
):
    """The settings of a run, those of all groups; a dataclass has the fields of its last base first.

    Names are those of the model config and of transformers' TrainingArguments.

    Raises:
        ValueError: impossible or contradicting values, all of them in one line.
    """

    def __post_init__(self) -> None:
        self._derive()
        problems = [*self._wrong_values(), *self._wrong_names(), *self._contradictions()]
        if problems:
            raise ValueError("; ".join(problems))
        if self.model_name_or_path is None:
            self.model_config()  # has rules of its own

    def _derive(self) -> None:
        """Fill in what depends on other settings; what a base model brings is not known yet."""
        if self.min_learning_rate is None:
            self.min_learning_rate = float(f"{self.learning_rate / 10:.12g}")
        if self.report_to == ["none"]:
            self.report_to = None
        if self.choose == ["none"]:
            self.choose = None
        if self.model_name_or_path is not None:
            return
        self.vocabulary = self.vocabulary or "gpt2"
        if self.num_attention_heads is None and self.hidden_size is not None and self.hidden_size > 0:
            self.num_attention_heads = fitting_heads(self.hidden_size)
        for name, value in FRESH_ARCHITECTURE.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _wrong_values(self) -> Iterator[str]:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for part in (hint, *get_args(hint)):  # the rule of `PositiveInt | None` is one level down
                for rule in getattr(part, "__metadata__", ()):
                    if rule.broken_by(value):
                        yield f"--{name} must be {rule}, got {value}"
                if get_origin(part) is Literal and value is not None and value not in get_args(part):
                    yield f"--{name} must be one of {', '.join(get_args(part))}, got {value!r}"
            if name != "sample_prompt" and "" in (value if isinstance(value, list) else [value]):
                # As a path it would be the current folder.
                yield f"--{name} is empty: give a value, or leave it out"
        if not 0 < self.train_split < 1:
            yield f"--train_split must be above 0 and below 1, got {self.train_split}"
        if self.max_steps != -1 and self.max_steps < 1:
            yield f"--max_steps must be -1 or at least 1, got {self.max_steps}"

    def _wrong_names(self) -> Iterator[str]:
        if unknown := [name for name in self.choose or () if name not in CHOSEN_BY_MINUTES]:
            yield f"--choose {unknown[0]} is not one of {', '.join(CHOSEN_BY_MINUTES)}"
        if self.license and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.license):
            yield f"--license must be letters, digits, dots and dashes, such as apache-2.0, got {self.license!r}"
        if self.model_name_or_path and Path(self.model_name_or_path).is_file():
            yield f"--model_name_or_path {self.model_name_or_path} is a file: name its folder"

    def _contradictions(self) -> Iterator[str]:
        heads = self.num_attention_heads or 1
        if self.hidden_size is not None and self.hidden_size % heads:
            yield f"--hidden_size {self.hidden_size} is not a multiple of --num_attention_heads {heads}"
        context = self.max_position_embeddings or math.inf
        if self.block_size is not None and self.block_size > context:
            owner = self.model_name_or_path or "the model"
            yield (
                f"--block_size {self.block_size} is longer than the context of {owner}, "
                f"--max_position_embeddings {context}"
            )
        if self.train_data is not None and self.train_file is not None:
            yield "give --train_file or --train_data, not both"
        if self.train_data is not None and self.data_order == "torch_dataloader":
            yield "--data_order torch_dataloader is the order of texts: with --train_data use seeded"
        if self.model_name_or_path is not None and self.weight_init != "gpt2":
            yield f"--weight_init {self.weight_init} would overwrite the weights of --model_name_or_path"
        if self.minutes is not None and self.max_steps != -1:
            yield f"--minutes {self.minutes:g} and --max_steps {self.max_steps} both decide the steps: give one"
        if "none" in (self.report_to or []):
            yield "--report_to none goes with no tracker: leave it out, or them"
        yield from self._wrong_choice()
        yield from self._wrong_rates()
        if self.optimizer_in_backward:
            yield from self._wrong_steps_in_backward()
        yield from self._wrong_pushes()

    def _wrong_choice(self) -> Iterator[str]:
        names = " ".join(self.choose or [])
        if names and self.minutes is None:
            yield f"--choose {names} needs --minutes, by which they are chosen"
        if names and self.model_name_or_path is not None:
            yield f"--choose {names} is for fresh models, not for --model_name_or_path: leave one out"
        if set(RATES) & set(self.choose or []) and set(RATES) - set(self.choose or []):
            yield f"--choose {names} leaves out some of {', '.join(RATES)}, which are chosen together"

    def _wrong_rates(self) -> Iterator[str]:
        lowest = self.min_learning_rate or 0.0
        if lowest > self.learning_rate and self.lr_scheduler_type != "constant":  # which has no lowest
            yield f"--min_learning_rate {lowest} is above --learning_rate {self.learning_rate}"
        if 0 < self.max_steps <= (self.warmup_steps or 0):
            yield f"--warmup_steps {self.warmup_steps} leaves none of --max_steps {self.max_steps} for training"

    def _wrong_steps_in_backward(self) -> Iterator[str]:
        needed = {"max_grad_norm": 0, "gradient_accumulation_steps": 1, "on_bad_step": "stop", "spike_threshold": 0}
        wrong = [f"--{name} {value}" for name, value in needed.items() if getattr(self, name) != value]
        if wrong:
            yield (
                "--optimizer_in_backward takes steps before the whole gradient is known: leave it out, or give "
                + ", ".join(wrong)
            )

    def _wrong_pushes(self) -> Iterator[str]:
        if self.push_to_hub is not None:
            try:
                check_names(self.push_to_hub, self.hub_revision)
                check_names(self.push_to_hub, self.push_steps_revision)
            except ValueError as error:
                yield f"--push_to_hub: {error}"
            if self.push_steps and self.push_steps_revision == self.hub_revision:
                yield f"--push_steps_revision {self.push_steps_revision} is the branch of the result: name another"
        elif self.push_steps:
            yield f"--push_steps {self.push_steps} has nowhere to push to: add --push_to_hub USER/NAME"

    @property
    def context(self) -> int:
        """The longest context of the model in tokens; a base model has to be read first."""
        if self.max_position_embeddings is None:
            raise ValueError(f"the context of {self.model_name_or_path} is not known before it is read")
        return self.max_position_embeddings

    @property
    def window_size(self) -> int:
        """Tokens of a training window."""
        return self.block_size or self.context

    def with_num_steps(self, num_steps: int) -> "TrainingSettings":
        """Return the settings of a run of that many steps, with its warm-up and the steps between evaluations.

        Raises:
            ValueError: warm-up would be the whole run.
        """
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = min(WARMUP_STEPS, num_steps // 2)
        elif warmup_steps >= num_steps:
            raise ValueError(f"--warmup_steps {warmup_steps} leaves none of the {num_steps} steps for training")
        eval_steps = self.eval_steps or max(EVAL_STEPS, math.ceil(num_steps / MAX_EVALUATIONS))
        save_steps = SAVE_STEPS if self.save_steps is None else self.save_steps
        if self.train_file or self.train_data:
            windows_a_step = self.per_device_train_batch_size * self.gradient_accumulation_steps
            if self.eval_steps is None:
                windows = num_steps * windows_a_step
                between = WINDOWS_BETWEEN
                if windows >= WINDOWS_OF_SHORT_RUN:
                    between = min(between, max(LEAST_WINDOWS_BETWEEN, windows // MIN_EVALUATIONS))
                eval_steps = max(eval_steps, math.ceil(between / windows_a_step))
            if self.save_steps is None:
                save_steps = max(save_steps, math.ceil(TOKENS_BETWEEN / (windows_a_step * self.window_size)))
        return replace(self, warmup_steps=warmup_steps, eval_steps=eval_steps, save_steps=save_steps)

    def model_config(self) -> "GPTScratchConfig":
        """Build the config of a fresh model, for the vocabulary."""
        vocabulary = load_vocabulary(self.vocabulary or "gpt2")
        # Imported here, because --help and most mistakes must not wait seconds for torch; from there, because the
        # scripts leave the registration to the code that needs it.
        from hf_gpt_scratch.registration import GPTScratchConfig

        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), vocabulary.end_of_text_id)
        values = {name: getattr(self, name) for name in ARCHITECTURE}
        return GPTScratchConfig(**values, vocab_size=vocabulary.size, dropout=self.dropout, **ids)

    def to_dict(self) -> dict[str, Any]:
        """Return all values, JSON-ready."""
        return asdict(self)

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """List the values that would make a resumed run another run than the saved one.

        A setting that the saved run did not know yet had what it is by default.
        """
        defaults = {item.name: item.default for item in fields(self)} | FRESH_ARCHITECTURE
        return [
            f"--{item.name} was {saved.get(item.name, defaults[item.name])}, is {getattr(self, item.name)}"
            for item in fields(self)
            if not item.metadata["may_change_on_resume"]
            and saved.get(item.name, defaults[item.name]) != getattr(self, item.name)
        ]


def fitting_heads(hidden_size: int) -> int:
    """Return a number of heads that divides a width: the usual one, or the one whose heads are as wide as GPT-2's."""
    usual = FRESH_ARCHITECTURE["num_attention_heads"]
    if hidden_size % usual == 0:
        return usual
    divisors = [heads for heads in range(1, hidden_size + 1) if hidden_size % heads == 0]
    return min(divisors, key=lambda heads: abs(hidden_size / heads - HEAD_WIDTH))

"""The sizes of the work and the time of each part: on a GPU, and for the rehearsal on a CPU."""

from dataclasses import dataclass, field
from typing import Any

from scripts.benchmarks.peer_benchmark import GPT2_124M, TINY


@dataclass(frozen=True)
class Plan:
    """Everything that the parts are told; JSON brings it to their processes.

    Attributes:
        model: sizes, as `peer_models.Task` names them.
        rows, length: windows of a training step and tokens of each.
        steps, rounds: of a sample, and samples of each candidate.
        prompt, new: tokens of a text to continue.
        decode_rows: rows of texts that are decoded together.
        backend: of torch.compile in training.
        decode_mode: of torch.compile in decoding, as keywords.
        memory: bytes that the largest batch may take; None: what the device has free.
        start_seconds: in which the candidates of a step must be ready.
        nanogpt_options: of nanoGPT's training, beside its own file of settings for the text.
        text_options: settings of our training on the text, beside those of `trainings.py`.
        nanogpt, text: the folder of nanoGPT and the text to train on; None: they are not there.
    """

    device: str
    model: dict[str, int]
    rows: int
    length: int
    steps: int
    rounds: int
    prompt: int
    new: int
    decode_rows: tuple[int, ...]
    backend: str
    decode_mode: dict[str, Any]
    memory: int | None
    start_seconds: float
    nanogpt_options: dict[str, str]
    text_options: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    nanogpt: str | None = None
    text: str | None = None

    def task_fields(self, folder: str, **changes: Any) -> dict[str, Any]:
        """Return the fields of `peer_models.Task`, for a step in bf16."""
        work = {"rows": self.rows, "length": self.length, "precision": "bf16", "device": self.device}
        return self.model | work | {"folder": folder} | changes


FULL = Plan(
    device="cuda",
    model=GPT2_124M,
    rows=16,
    length=1024,
    steps=10,
    rounds=4,
    prompt=64,
    new=128,
    decode_rows=(1, 64, 8),  # the most important first, as the time may end
    backend="inductor",
    decode_mode={"mode": "reduce-overhead"},
    memory=None,
    start_seconds=70.0,
    nanogpt_options={},
)
REHEARSAL = Plan(
    device="cpu",
    model=TINY | {"layers": 1},
    rows=2,
    length=16,
    steps=1,
    rounds=2,
    prompt=8,
    new=6,
    decode_rows=(1, 64, 8),
    backend="aot_eager",  # the compiler of a CPU would take a minute
    decode_mode={"backend": "eager"},
    memory=10**9,
    start_seconds=400.0,
    nanogpt_options={
        "device": "cpu", "compile": "False", "eval_iters": "1", "eval_interval": "4", "max_iters": "8",
        "log_interval": "1", "always_save_checkpoint": "True",
        "n_layer": "1", "n_embd": "32", "n_head": "2", "batch_size": "2", "block_size": "16",
    },
    text_options={
        "hidden_size": "16", "num_hidden_layers": "1", "num_attention_heads": "2", "max_position_embeddings": "16",
        "per_device_train_batch_size": "2", "mixed_precision": "no", "use_cpu": "true",
        "max_steps": "2", "warmup_steps": "1",
    },
)  # fmt: skip

# The seconds of each part. What a part leaves is there for those after it; together they are under ten minutes.
SECONDS = {
    "proof": 100.0,
    "step_speed": 105.0,
    "decoding": 110.0,
    "step_alone": 115.0,
    "trainings": 160.0,  # the last, as its last training may take all the time that is left
}

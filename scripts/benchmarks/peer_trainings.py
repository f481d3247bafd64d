"""Whole training commands of transformers' Trainer and of litgpt on a text, with GPT-2's vocabulary."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary

from .measuring import Measurement, measure
from .training import VOCAB_SIZE


SCRIPTS = Path(__file__).resolve().parents[1]
VALIDATION_WINDOWS = 8  # at least: litgpt stops where its validation text does not fill a batch of four
# litgpt's `pretrain` with GPT-2's form, but for the positions, which it rotates; as for texts of a user's own.
LITGPT_FORM = {
    "vocab_size": VOCAB_SIZE,
    "padded_vocab_size": VOCAB_SIZE,
    "bias": "true",
    "parallel_residual": "false",
    "gelu_approximate": "tanh",
    "rotary_percentage": "1.0",
}


@dataclass(frozen=True)
class PeerTask:
    """The task of every peer: the first nine tenths of a text, and the size of the model.

    Attributes:
        folder: with `train/text.txt`, `validation/text.txt` and `tokenizer`; the runs are written there.
        sizes: `layers`, `width`, `heads` and `context`.
        tokens: that a peer trains on, about.
        threads: of PyTorch.
        litgpt_python: Python that has litgpt, and what this package needs; None if no litgpt takes part.
    """

    folder: Path
    sizes: dict[str, int]
    tokens: int
    threads: int
    litgpt_python: Path | None = None

    @property
    def text(self) -> Path:
        """The training text."""
        return self.folder / "train" / "text.txt"


def prepare(text: Path, folder: Path, context: int) -> None:
    """Write the first nine tenths of the characters of a text, the rest, and GPT-2's tokenizer.

    The rest is repeated until it fills enough windows for litgpt, which measures its validation loss on it.

    Args:
        text: a file.
        folder: to fill.
        context: tokens of a window.
    """
    whole = text.read_text(encoding="utf-8")
    cut = int(0.9 * len(whole))
    training, rest = whole[:cut], whole[cut:]
    repeats = 1 + VALIDATION_WINDOWS * context // max(1, len(rest.split()))
    for name, content in (("train", training), ("validation", rest * repeats)):
        (folder / name).mkdir()
        (folder / name / "text.txt").write_text(content, encoding="utf-8")
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer", load_vocabulary("gpt2"), model_max_length=context)


@dataclass(frozen=True)
class TrainerPeer:
    """The Trainer with its defaults: 8 windows a step, AdamW at 5e-5 falling linearly."""

    def train(self, task: PeerTask, output: Path, seed: int) -> tuple[Measurement, Path]:
        """Run the command; return its cost and the folder of the model."""
        options: dict[str, Any] = {
            "text": str(task.text),
            "tokenizer_folder": str(task.folder / "tokenizer"),
            "output": str(output),
        }
        options |= {"sizes": task.sizes, "tokens": task.tokens, "seed": seed}
        script = ["env", "-C", SCRIPTS.parent, f"OMP_NUM_THREADS={task.threads}", sys.executable, "-m"]
        return measure([*script, f"{__package__}.trainer_run", json.dumps(options)]), output / "model"


@dataclass(frozen=True)
class LitgptPeer:
    """litgpt's `pretrain`, with its defaults where no options are given."""

    options: dict[str, Any] = field(default_factory=dict)

    def train(self, task: PeerTask, output: Path, seed: int) -> tuple[Measurement, Path]:
        """Run the command; return its cost and the folder of the checkpoint."""
        return measure(self.command(task, output, task.tokens, seed)), output / "final"

    def warm_up(self, task: PeerTask, output: Path) -> None:
        """Run a step that is not timed: it fills the cache of torch.compile, so that all rounds find it full."""
        measure(self.command(task, output, 4 * task.sizes["context"], seed=0))

    def command(self, task: PeerTask, output: Path, tokens: int, seed: int) -> list[Any]:
        """Return the command; the tokens of the text are written again by each, as a user's first run does."""
        sizes, data = task.sizes, output / "data"
        shape = {"n_layer": sizes["layers"], "n_embd": sizes["width"], "n_head": sizes["heads"]}
        model = {"block_size": sizes["context"], **shape, **LITGPT_FORM}
        for name in ("train", "validation"):
            (data / name).mkdir(parents=True)
            (data / name / "text.txt").symlink_to(task.folder / name / "text.txt")
        options = {f"model_config.{name}": value for name, value in model.items()}
        options |= {
            "tokenizer_dir": task.folder / "tokenizer",
            "data": "TextFiles",
            "data.train_data_path": data / "train",
            "data.val_data_path": data / "validation",
            "data.num_workers": 0,  # its four are new for each epoch: on a short text they take most of the time
            "train.tie_embeddings": "true",
            "train.max_tokens": tokens,
            "out_dir": output,
            "seed": seed,
        }
        words = [str(word) for name, value in (options | self.options).items() for word in (f"--{name}", value)]
        variables = {
            "OMP_NUM_THREADS": task.threads,
            "TORCHINDUCTOR_CACHE_DIR": task.folder / "compiled",
            "LITDATA_DISABLE_VERSION_CHECK": 1,
        }
        environment = ["env", "-C", output, *(f"{name}={value}" for name, value in variables.items())]
        return [*environment, task.litgpt_python, "-m", "litgpt", "pretrain", "pythia-14m", *words]


# litgpt's own batch has 512 windows, more than a small text: the second has the Trainer's, and a warm-up that fits.
PEERS: dict[str, TrainerPeer | LitgptPeer] = {
    "transformers Trainer": TrainerPeer(),
    "litgpt": LitgptPeer(),
    "litgpt, batch of 8": LitgptPeer({"train.global_batch_size": 8, "train.lr_warmup_steps": 10}),
}


def litgpt_version(python: Path) -> str:
    """Return the version of litgpt that a Python has.

    Raises:
        ValueError: it has none.
    """
    code = "from importlib.metadata import version; print(version('litgpt'))"
    process = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if process.returncode:
        raise ValueError(f"--peer_python {python} has no litgpt: {process.stderr.strip().rpartition(chr(10))[2]}")
    return process.stdout.strip()

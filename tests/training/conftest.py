"""Runs that take seconds: a tiny model on the first pages of the bundled story."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.training.settings import TrainingSettings


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its settings for the life of the process; each test shall begin without them."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 600 tokens: 34 training windows of 16 tokens, the last of them partly filled."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(bundled_text_path().read_text(encoding="utf-8")[:2300], encoding="utf-8")
    return path


@pytest.fixture
def tiny_settings(short_text: Path, tmp_path: Path) -> Callable[..., TrainingSettings]:
    """Settings of a run of seconds, into a new folder; keywords override."""

    def build(**changes: object) -> TrainingSettings:
        values = {
            "train_file": [str(short_text)],
            "output_dir": str(tmp_path / "run"),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "per_device_train_batch_size": 4,
            "dropout": 0.0,
            "warmup_steps": 2,
            "max_steps": 6,
            "eval_steps": 3,
            "sample_tokens": 5,
            "save_steps": 0,
            "peak_flops": 1e12,  # measuring it takes a sixth of such a run
            **changes,
        }
        return TrainingSettings(**values)

    return build

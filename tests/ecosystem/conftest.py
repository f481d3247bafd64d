"""A small trained model in an exported folder, and interpreters that know nothing of this package."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.repository import build_repository
from tests import fresh_interpreter


@pytest.fixture(scope="session")
def sample_text() -> Path:
    return bundled_text_path()


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, sample_text: Path) -> Path:
    """The folder of a model that recites the beginning of the bundled story: its greedy texts are words in a row, not
    one token again and again, which a model with tied random weights writes too.
    """
    torch.manual_seed(0)
    config = GPTScratchConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, dropout=0.0,
        initializer_range=0.1,
    )  # fmt: skip
    model = GPTScratchForCausalLM(config).train()
    ids = torch.tensor(build_tokenizer()(sample_text.read_text(encoding="utf-8"))["input_ids"])
    windows = ids[:300].unfold(0, 60, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(150):
        batch = windows[torch.randint(len(windows), (2,))]
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return build_repository(model.eval(), tmp_path_factory.mktemp("exported") / "story-model")


@pytest.fixture(scope="session")
def stock(repository: Path, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in transformers' own GPT-2 layout, as the command writes it."""
    folder = tmp_path_factory.mktemp("stock") / "stock"
    script = project_root / "scripts" / "convert_gpt2.py"
    command = [sys.executable, script, "--from-dir", repository, "--output", folder, "--export-stock"]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return folder


@pytest.fixture
def call(request: pytest.FixtureRequest, tmp_path: Path, one_thread: None) -> Callable[..., dict]:
    """Make a call of the test's own file in an interpreter that cannot import hf_gpt_scratch and has no network."""

    def make(function: Callable[..., dict], **arguments: object) -> dict:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        outcome = fresh_interpreter.run(
            tmp_path / function.__name__,
            {"call": (function.__name__, given)},
            functions=request.path,
            env={"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return outcome.returned("call")

    return make

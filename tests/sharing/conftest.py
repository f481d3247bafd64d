"""Fixtures for tests of sharing: two states of a model's folder, pushing as users do, and what a Hub holds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.hub.model_card import CardDetails
from hf_gpt_scratch.hub.repository import build_repository
from tests.loopback_hub import LoopbackHub


TABLES = pytest.StashKey[dict[str, list[list[str]]]]()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Callable[[str, list[str], list[str]], None]:
    """Add a row to a table that is printed when all tests have run: its title, its columns, the row."""
    tables = request.config.stash.setdefault(TABLES, {})

    def add(title: str, columns: list[str], row: list[str]) -> None:
        tables.setdefault(title, [columns]).append(row)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables."""
    for title, rows in config.stash.get(TABLES, {}).items():
        terminalreporter.section(title)
        for row in rows:
            terminalreporter.write_line("| " + " | ".join(row) + " |")


def tiny_model(seed: int, **changes: int) -> GPTScratchForCausalLM:
    """A model with GPT-2's tokens, or those of the changes, and tied weights, none of which is as it was born."""
    sizes = {"max_position_embeddings": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTScratchConfig(**sizes, **changes)
    model = GPTScratchForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3, generator=generator)
    return model


@pytest.fixture(scope="session")
def model() -> GPTScratchForCausalLM:
    return tiny_model(seed=1)


@pytest.fixture(scope="session")
def own_model() -> GPTScratchForCausalLM:
    """A model with the 400 tokens of `own_vocabulary`."""
    return tiny_model(seed=3, vocab_size=400, bos_token_id=399, eos_token_id=399, pad_token_id=399)


@pytest.fixture(scope="session")
def folders(
    model: GPTScratchForCausalLM,
    own_model: GPTScratchForCausalLM,
    own_vocabulary: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The repository folder of `model` in one weight file ("single") and in several ("sharded"); "own": `own_model`.

    "old" is what may stand on the Hub before: other weights, another card, a file that is gone since.
    """
    root = tmp_path_factory.mktemp("folders")
    build_repository(model, root / "single")
    build_repository(model, root / "sharded", max_shard_size="20KB")
    build_repository(own_model, root / "own", tokenizer=AutoTokenizer.from_pretrained(own_vocabulary))
    build_repository(tiny_model(seed=2), root / "old", card=CardDetails(facts={"state": "old"}))
    (root / "old" / "LICENSE").write_text("a file that the new state does not have\n", encoding="utf-8")
    return {name: root / name for name in ("single", "sharded", "own", "old")}


@pytest.fixture(scope="session")
def push_by_script(project_root: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run scripts/push_to_hub.py as users type it, with the settings that a loopback Hub gives to processes."""

    def run(hub: LoopbackHub, home: Path, *arguments: object, xet: bool = True) -> subprocess.CompletedProcess:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, str(project_root / "scripts" / "push_to_hub.py"), *map(str, arguments)],
            env=inherited | hub.environment(home, hub.token_of("alice"), xet=xet),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run

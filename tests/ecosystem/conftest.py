"""A small trained model in an exported folder, interpreters that know nothing of this package, and the record of what
works with which version.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import fresh_interpreter
import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data import TokenWindows
from hf_gpt_scratch.repository import build_repository
from hf_gpt_scratch.sample_texts import bundled_text_path
from hf_gpt_scratch.tokenizer import build_tokenizer


ROWS = pytest.StashKey[dict[str, dict]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> pytest.TestReport:
    """Keep the outcome of each test that says what it proves."""
    report = yield
    marker = item.get_closest_marker("works")
    if marker and (report.when == "call" or report.outcome != "passed"):
        package, what = marker.args
        row = {"package": package, "version": version(package), "what": what, "outcome": report.outcome}
        item.config.stash[ROWS][item.nodeid] = row
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("ecosystem_results")
    if path:
        rows = sorted(session.config.stash[ROWS].items())
        Path(path).write_text(json.dumps(dict(rows), indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def sample_text() -> Path:
    return bundled_text_path()


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, sample_text: Path) -> Path:
    """The folder of a model that knows the beginning of the bundled story: its greedy texts are not all one token."""
    torch.manual_seed(0)
    config = GPTScratchConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, dropout=0.0
    )
    model = GPTScratchForCausalLM(config).train()
    ids = torch.tensor(build_tokenizer()(sample_text.read_text(encoding="utf-8"))["input_ids"])
    windows = TokenWindows(ids[: 16 * 64 + 1], 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(120):
        rows = [windows[(4 * step + row) % len(windows)] for row in range(4)]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        model(**batch, use_cache=False).loss.backward()
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

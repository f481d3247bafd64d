"""What all tests share: the reference data, tiny models, and one thread so that two cores are not fought over; and the
record of what works with which version (works_table.py).
"""

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary_training import TextSample, train_vocabulary
from hf_gpt_scratch.hub.repository import build_repository
from hf_gpt_scratch.training import speed
from tests.loopback_hub import LoopbackHub
from tests.warm_interpreter import run_script
from tests.works_table import pytest_addoption, pytest_configure, pytest_runtest_makereport  # noqa: F401


TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--sample_tokens", "5", "--warmup_steps", "2", "--dropout", "0"),
]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are slower on several threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """What a test runs in this process may have set another number, and the last bits of a sum depend on it."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def short_measurements() -> None:
    """A run that trains a tiny model for a second need not measure its speed for another."""
    speed.REPEAT_SECONDS = 0.0


@pytest.fixture(scope="session", autouse=True)
def heeded_interrupt() -> None:
    """A shell has what it starts in the background, and all that this starts in turn, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout, where scripts/ lies."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data(project_root: Path) -> Path:
    """Reference data that is not part of the project: The Verdict and OpenAI's encoder.json."""
    folder = Path(os.environ.get("HF_GPT_SCRATCH_SHARED_DATA", project_root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set HF_GPT_SCRATCH_SHARED_DATA")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub on this machine, of this test alone; see tests/loopback_hub."""
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet_cache"))  # its logs would go to the home of the user
    with LoopbackHub(tmp_path / "loopback_hub") as hub:
        yield hub


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as training writes it, small and in two shards; tests copy what they change."""
    config = GPTScratchConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8, tie_word_embeddings=False
    )
    folder = tmp_path_factory.mktemp("finished") / "model"
    return build_repository(GPTScratchForCausalLM(config), folder, max_shard_size="1700KB")


@pytest.fixture
def tiny_config() -> GPTScratchConfig:
    """A model that runs in milliseconds; sizes differ from each other so that a mix-up does not go unseen."""
    return GPTScratchConfig(
        vocab_size=101,
        max_position_embeddings=24,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def draw_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter from normal(0, 0.2), LayerNorm scales around 1: a wrong or forgotten one is visible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.2, generator=generator)


@pytest.fixture
def build_model(tiny_config: GPTScratchConfig) -> Callable[..., GPTScratchForCausalLM]:
    """Return a function that builds the tiny model in eval mode, with drawn weights and the changes it is given."""

    def build(
        model_class: type = GPTScratchForCausalLM, attn_implementation: str = "sdpa", seed: int = 0, **changes: object
    ) -> GPTScratchForCausalLM:
        config = copy.deepcopy(tiny_config)
        for name, value in changes.items():
            setattr(config, name, value)
        model = model_class._from_config(config, attn_implementation=attn_implementation)
        draw_weights(model, seed)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One thread, an empty Hugging Face home, no telemetry; a network that refuses every connection."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,127.0.0.2,localhost",
    }


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2,300 characters of the bundled story."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(bundled_text_path().read_text(encoding="utf-8")[:2300], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def own_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of 400 tokens, trained on the bundled story."""
    folder = tmp_path_factory.mktemp("vocabulary") / "mine"
    folder.mkdir()
    write_tokenizer(folder, train_vocabulary(TextSample([bundled_text_path()]), 400))
    return folder


@pytest.fixture(scope="session")
def launch(environment: dict[str, str], project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Run a script of the project in an empty folder: through `accelerate launch`, or as python does, in a fork.

    With another number of threads or other variables than the other runs it is a process of its own: both count from
    the start of Python.
    """
    folder, usual = tmp_path_factory.mktemp("cwd"), dict(environment)

    def run(
        script: str,
        *arguments: object,
        launcher: list[str] | None = None,
        threads: int | None = 1,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess:
        path, words = project_root / "scripts" / script, [*map(str, arguments)]
        changed = {name for name in environment if environment[name] != usual.get(name)}
        if launcher is None and threads == 1 and changed <= {"PYTHONIOENCODING"}:
            return run_script(path, words, environment, folder, timeout)
        python = [sys.executable]
        if launcher is not None:
            python = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher]
        command = [*python, str(path), *words]
        env = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}
        if threads is not None:
            env["OMP_NUM_THREADS"] = str(threads)
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def trained(launch: Callable, short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of `accelerate launch scripts/train.py` and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    arguments = [*TINY, "--train_file", short_text, "--output_dir", folder, "--max_steps", 6, "--eval_steps", 3]
    result = launch("train.py", *arguments, "--per_device_train_batch_size", 8, launcher=["--cpu"])
    if result.returncode != 0:
        pytest.fail(f"training failed:\n{result.stdout}\n{result.stderr}")
    return folder, result.stdout

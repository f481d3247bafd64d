"""Scripts run as users type them; a run of seconds that several tests look at."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.sample_texts import bundled_text_path


TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--sample_tokens", "5", "--warmup_steps", "2", "--dropout", "0"),
]


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
        "NO_PROXY": "127.0.0.1,localhost",
    }


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2,300 characters of the bundled story."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(bundled_text_path().read_text(encoding="utf-8")[:2300], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def launch(environment: dict[str, str], project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Run a script of the project in an empty folder: through `accelerate launch`, or plainly with python."""
    folder = tmp_path_factory.mktemp("cwd")

    def run(
        script: str,
        *arguments: object,
        launcher: list[str] | None = None,
        threads: int | None = 1,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess:
        python = [sys.executable]
        if launcher is not None:
            python = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher]
        command = [*python, str(project_root / "scripts" / script), *map(str, arguments)]
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

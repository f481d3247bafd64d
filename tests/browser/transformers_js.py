"""transformers.js from npm, installed once beside the other engines; Node 18 or newer and npm have to be there."""

import subprocess
from pathlib import Path

from filelock import FileLock

from tests.engines.environments import root
from tests.pip import NotInstalledError


VERSION = "4.3.1"
INSTALL_TIMEOUT = 600  # seconds; it takes 23, and 474 MB


def node_modules() -> Path:
    """Return the folder of npm's packages that has it, and make it if it is not there."""
    folder = root() / f"transformers.js-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with FileLock(folder.with_suffix(".lock")):
        if not complete.is_file():
            # Without scripts: onnxruntime-node's fetches libraries for CUDA from elsewhere. That for a CPU is there.
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
            command = ["npm", "install", *options, "--prefix", folder, f"@huggingface/transformers@{VERSION}"]
            folder.mkdir(exist_ok=True)
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
            except FileNotFoundError as error:
                raise NotInstalledError("there is no npm: apt-get install nodejs npm") from error
            except subprocess.CalledProcessError as error:
                raise NotInstalledError(f"npm install:\n{error.stderr}") from error
            complete.touch()
    return folder / "node_modules"

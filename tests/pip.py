"""Runs pip for tests that install other versions than the ones they run with."""

import os
import subprocess
import sys
from pathlib import Path


class NotInstalledError(Exception):
    """What is asked for could not be had: a failure, since nothing is known of it then."""


def pip(*arguments: str, timeout: float, python: str | Path = sys.executable) -> str:
    """Return what pip prints, in `timeout` seconds; the constraints of CI pin other versions: they are not heard."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalledError(f"pip {' '.join(arguments)}: not at its end after {timeout} seconds") from error
    if done.returncode != 0:
        raise NotInstalledError(f"pip {' '.join(arguments)}:\n{done.stderr}")
    return done.stdout

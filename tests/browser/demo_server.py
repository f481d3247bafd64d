"""The demo as a process of its own, watched."""

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import psutil


# Writes down to whom the program speaks; names are looked up before anything is sent.
WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open({path!r}, "a") as file:
            print(event, arguments[1] if event == "socket.connect" else arguments[0], file=file)
sys.addaudithook(watch)
"""


class Demo:
    """`scripts/demo.py`, or the `app.py` of a Space, serving."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self.contacts = folder / "contacts.txt"
        (folder / "watch").mkdir(parents=True)
        (folder / "watch" / "sitecustomize.py").write_text(WATCH.format(path=str(self.contacts)), encoding="utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO_", "HF_"))}
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "watch"), **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=folder,
            env=inherited | {"HF_HOME": str(folder / "home")} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = self.wait_for(r"Running on local URL:\s+(\S+)").replace("0.0.0.0", "127.0.0.1")

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        end, shown = time.monotonic() + seconds, ""
        while not (match := re.search(pattern, shown)):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            line = self.process.stdout.readline() if ready else ""
            if not line:
                raise AssertionError(f"{pattern} did not come: {shown}")
            shown += line
        return match[1]

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

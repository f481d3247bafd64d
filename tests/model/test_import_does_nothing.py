"""Proves that importing the shipped files only defines: no file is written, no process started, no network asked.

The interpreter itself tells, by its audit events, what a second copy of the files does; the first has loaded torch and
transformers before. The control is a copy with one more line.
"""

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest


PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import first.modeling_gpt_scratch
events = []
SEEN = ("socket.", "subprocess.", "os.", "shutil.", "urllib.", "exec_", "ctypes.dlopen", "webbrowser.")
READING = ("os.listdir", "os.scandir")
def hook(event, args):
    writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(SEEN) and event not in READING):
        events.append(event)
sys.addaudithook(hook)
import second.modeling_gpt_scratch
done = list(events)
print(json.dumps(done))
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("import socket\nsocket.socket().close()", ["socket.__new__"]),
        pytest.param("import os\nos.system('true')", ["os.system"], marks=pytest.mark.nightly),
        pytest.param("open('seen', 'w').close()", ["open"], marks=pytest.mark.nightly),
    ],
    ids=["as shipped", "network", "process", "file"],
)
def test_importing_only_defines(line: str, expected: list[str], tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for path in Path(str(files("hf_gpt_scratch") / "model")).glob("*_gpt_scratch.py"):
            shutil.copy(path, tmp_path / name)
    with (tmp_path / "second" / "generation_gpt_scratch.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    command = [sys.executable, "-B", "-c", PROGRAM, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == expected

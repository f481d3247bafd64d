"""Proves that an exported folder passes transformers' own tests of a model, as many as its GPT-2 does.

They are not part of its wheel, so this runs where a checkout of the installed release is given:
TRANSFORMERS_SOURCE=FOLDER python -m pytest -m nightly tests/versions/test_suite_of_transformers.py
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


SOURCE = os.environ.get("TRANSFORMERS_SOURCE")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SOURCE, reason="TRANSFORMERS_SOURCE names no checkout of transformers")
def test_no_test_of_the_library_is_lost(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("parameterized", reason="the suite needs it")
    source = Path(SOURCE or "").resolve()
    shutil.copytree(source / "tests", tmp_path / "tests")
    for name in ("src", "utils"):
        (tmp_path / name).symlink_to(source / name)
    ours = tmp_path / "tests" / "models" / "gpt_scratch"
    ours.mkdir()
    (ours / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("suite_of_transformers.py"), ours / "test_modeling_gpt_scratch.py")
    environment = os.environ | {
        "EXPORTED_FOLDER": str(exported / "tiny"),
        "HF_HUB_OFFLINE": "1",
        "RUN_SLOW": "1",  # those of torch.export are among them
        "PYTHONPATH": f"{tmp_path / 'utils'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    passed = {}
    for model, tests in (("gpt_scratch", "GPTScratchModelTest"), ("gpt2", "GPT2ModelTest")):
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", tmp_path]
        command += ["-p", "no:cacheprovider", "-k", tests, f"tests/models/{model}"]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        summary = run.stdout.splitlines()[-1]
        print(f"{model}: {summary}")
        assert run.returncode == 0, run.stdout[-5000:]
        passed[model] = int(re.search(r"(\d+) passed", summary)[1])
    assert passed["gpt_scratch"] >= passed["gpt2"]

"""Proves that a Space's folder, laid out by README's commands, starts there as it would on the Hub, and answers."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from hf_gpt_scratch.generation.decoding import generate_text
from hf_gpt_scratch.hub.loading import load_model_and_tokenizer


pytestmark = pytest.mark.browser


def test_a_space(
    start_demo: Callable, visit: Callable, model_folder: Path, project_root: Path, tmp_path: Path, free_port: str
) -> None:
    for name in ("scripts", "hf_gpt_scratch"):
        shutil.copytree(project_root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(model_folder, tmp_path / "runs" / "gpt-scratch" / "model")
    readme = (project_root / "hf_gpt_scratch" / "generation" / "README.md").read_text(encoding="utf-8")
    *commands, upload = re.search(r"```bash\n(mkdir space.*?)\n```", readme, flags=re.DOTALL)[1].splitlines()
    subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=tmp_path, check=True)
    space = tmp_path / "space"
    assert {"app.py", "README.md", "requirements.txt", "hf_gpt_scratch", "model"} == {
        path.name for path in space.iterdir()
    }
    where = [sys.executable, "-c", "import hf_gpt_scratch; print(hf_gpt_scratch.__file__)"]
    result = subprocess.run(where, cwd=space, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == str(space / "hf_gpt_scratch" / "__init__.py")  # and not the one installed here
    # The Hub's own settings for the container.
    demo = start_demo("app.py", folder=space, GRADIO_SERVER_NAME="0.0.0.0", GRADIO_SERVER_PORT=free_port)
    assert demo.url == f"http://127.0.0.1:{free_port}"
    page = visit(demo)
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_label("Status")).to_have_value(re.compile("^done"), timeout=60_000)
    expected = generate_text(
        *load_model_and_tokenizer(str(model_folder)), "Every effort moves you", temperature=1.0, top_k=25,
        max_new_tokens=50, seed=123,
    )  # fmt: skip
    assert page.get_by_label("Text", exact=True).input_value() == expected
    # The last command needs the Hub; its options exist.
    program, verb, *arguments = upload.split()
    assert (program, verb) == ("hf", "upload")
    options = [argument for argument in arguments if argument.startswith("--")]
    shown = subprocess.run([Path(sys.executable).parent / "hf", "upload", "--help"], capture_output=True, text=True)
    assert options
    assert all(option in shown.stdout for option in options)

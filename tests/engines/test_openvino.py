"""OpenVINO GenAI with the stock export, as its own exporter converts it: the greedy ids are those of `generate`."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from tests.engines.environments import OPENVINO, python_of


pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]

TIMEOUT = 600  # seconds, of the export and of the texts
NEW = 16


@pytest.mark.works("openvino-genai", "the stock export by `optimum-cli export openvino`: the same greedy ids")
def test_greedy_ids_are_those_of_generate(repository: Path, stock: Path, tmp_path: Path) -> None:
    python, converted = python_of(OPENVINO), tmp_path / "converted"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment = inherited | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def run(*command: str | Path, given: str = "") -> None:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, input=given, capture_output=True, text=True, timeout=TIMEOUT
        )
        assert done.returncode == 0, done.stderr[-8000:]

    export = ("export", "openvino", "--model", stock, "--task", "text-generation-with-past", "--weight-format", "fp32")
    run(python.with_name("optimum-cli"), *export, converted)
    story, texts = bundled_text_path().read_text(encoding="utf-8"), []
    for start, end in ((0, 12), (40, 70), (200, 245), (400, 560)):
        texts.append(story[start:end].strip())
    script, report = Path(__file__).with_name("openvino_child.py"), tmp_path / "report.json"
    run(python, "-I", script, converted, str(NEW), report, given=json.dumps(texts))
    answered = json.loads(report.read_text(encoding="utf-8"))

    assert not answered["package"]
    model, tokenizer = GPTScratchForCausalLM.from_pretrained(repository), AutoTokenizer.from_pretrained(repository)
    assert answered["prompts"] == tokenizer(texts)["input_ids"]
    expected = []
    for prompt in answered["prompts"]:
        output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        expected.append(output[0, len(prompt) :].tolist())
    assert min(len(set(ids)) for ids in expected) > NEW // 2  # no repetitions of one token
    assert answered["ids"] == expected
    assert answered["texts"] == tokenizer.batch_decode(expected, skip_special_tokens=True)

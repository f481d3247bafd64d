"""OpenVINO GenAI with the stock export, as its own exporter converts it: the greedy ids are those of `generate`."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from tests.engines.environments import OPENVINO, run


pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]

NEW = 16


@pytest.mark.works("openvino-genai", "the stock export by `optimum-cli export openvino`: the same greedy ids")
def test_greedy_ids_are_those_of_generate(repository: Path, stock: Path, tmp_path: Path) -> None:
    converted, report = tmp_path / "converted", tmp_path / "report.json"
    export = ("export", "openvino", "--model", stock, "--task", "text-generation-with-past", "--weight-format", "fp32")
    run(OPENVINO, tmp_path, "optimum-cli", *export, converted)
    story, texts = bundled_text_path().read_text(encoding="utf-8"), []
    for start, end in ((0, 12), (40, 70), (200, 245), (400, 560)):
        texts.append(story[start:end].strip())
    script = Path(__file__).with_name("openvino_child.py")
    run(OPENVINO, tmp_path, "python", "-I", script, converted, str(NEW), report, given=json.dumps(texts))
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

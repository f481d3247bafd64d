"""Continues prompts greedily with OpenVINO GenAI and writes what came; runs where hf_gpt_scratch is not.

    python openvino_child.py FOLDER NEW_TOKENS REPORT < PROMPTS

PROMPTS are texts, and REPORT is {"package": whether hf_gpt_scratch can be imported, "prompts": [[...], ...], "ids":
[[...], ...]}.
"""

import importlib.util
import json
import sys
from pathlib import Path

import openvino_genai


def main() -> None:
    """Do what the order says."""
    folder, new_tokens, report = sys.argv[1:]
    texts = json.load(sys.stdin)
    pipeline = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    tokenizer = pipeline.get_tokenizer()
    prompts = [tokenizer.encode(text).input_ids.data[0].tolist() for text in texts]
    options = {"max_new_tokens": int(new_tokens), "do_sample": False, "ignore_eos": True}
    found = [pipeline.generate(tokenizer.encode(text), **options).tokens[0] for text in texts]
    together = pipeline.generate(texts, **options).texts
    content = {
        "package": importlib.util.find_spec("hf_gpt_scratch") is not None,
        "prompts": prompts, "ids": [[*ids] for ids in found], "texts": together,
    }  # fmt: skip
    Path(report).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Starts vLLM once, makes the calls it is told to, and writes what came of them; runs where hf_gpt_scratch is not.

    python vllm_child.py REPORT < ORDER

ORDER is {"engine": arguments of LLM, "calls": {name: {"prompts": texts or lists of ids, "sampling": arguments, and
perhaps "adapter": the folder of one}}}, and REPORT is {"seconds": of the start, "package": whether hf_gpt_scratch can
be imported, "calls": {name: ...}}. A call without "sampling" asks for embeddings. vLLM prints on both streams, so the
report is a file.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any


def make_call(
    engine: Any, prompts: list[Any], sampling: dict[str, Any] | None = None, adapter: str | None = None
) -> dict[str, Any]:
    """Return the texts' ids, the new ones and why each ended, or the embeddings, or the error that there was."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    given = [{"prompt_token_ids": prompt} if isinstance(prompt, list) else prompt for prompt in prompts]
    request = LoRARequest("adapter", 1, adapter) if adapter else None
    start = time.monotonic()
    try:
        if sampling is None:
            return {"embeddings": [output.outputs.embedding for output in engine.embed(given, use_tqdm=False)]}
        outputs = engine.generate(given, SamplingParams(**sampling), use_tqdm=False, lora_request=request)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "prompts": [[*output.prompt_token_ids] for output in outputs],
        "ids": [[*output.outputs[0].token_ids] for output in outputs],
        "logprobs": [
            [of_token[token].logprob for token, of_token in zip(new.token_ids, new.logprobs or [], strict=False)]
            for output in outputs
            for new in output.outputs
        ],
        "ends": [output.outputs[0].finish_reason for output in outputs],
        "cached": [output.num_cached_tokens for output in outputs],
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    """Do what the order says."""
    order, start = json.load(sys.stdin), time.monotonic()
    from vllm import LLM

    engine = LLM(**order["engine"])
    report = {
        "package": importlib.util.find_spec("hf_gpt_scratch") is not None,
        "seconds": round(time.monotonic() - start, 1),
        "calls": {name: make_call(engine, **call) for name, call in order["calls"].items()},
    }
    Path(sys.argv[1]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":  # the workers import this file too
    main()

"""The candidates of the generation benchmark that are engines: the same GPT-2, converted as each of them wants it."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .generation_runs import Fields, Text, Work, repeated
from .peer_models import VOCAB_SIZE, Task, stock_model


def save_stock_model(task: Task) -> Path:
    """Save transformers' GPT-2 with the initial weights, and a tokenizer whose tokens are the numbers of the ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = Path(tempfile.mkdtemp(dir=task.folder))
    model = stock_model(task)
    model.config.update({"use_cache": True, "eos_token_id": 0, "bos_token_id": 0})
    model.save_pretrained(folder)
    words = models.WordLevel({str(number): number for number in range(VOCAB_SIZE)}, unk_token="0")
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **ends).save_pretrained(folder)
    return folder


def make_ctranslate2(task_fields: Fields, text_fields: Fields) -> Work:
    """Run CTranslate2 in float32."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    task, text = Task(**task_fields), Text(**text_fields)
    stock = save_stock_model(task)
    converted = stock / "converted"
    TransformersConverter(str(stock)).convert(str(converted))
    engine = ctranslate2.Generator(str(converted), compute_type="float32", intra_threads=torch.get_num_threads())
    how: dict[str, Any] = {"sampling_topk": 1, "end_token": [], "include_prompt_in_result": False}

    def continued(ids: torch.Tensor) -> torch.Tensor:
        rows = [[str(token) for token in row] for row in ids.tolist()]
        added = engine.generate_batch(rows, max_length=text.new, min_length=text.new, max_batch_size=len(rows), **how)
        return torch.cat([ids, torch.tensor([row.sequences_ids[0] for row in added])], dim=1)

    return repeated(text, continued)


def make_openvino(task_fields: Fields, text_fields: Fields) -> Work:
    """Run OpenVINO GenAI in float32."""
    import openvino
    import openvino_genai
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    task, text = Task(**task_fields), Text(**text_fields)
    stock, kind = save_stock_model(task), "text-generation-with-past"
    converted = stock / "converted"
    how_exact = OVConfig(dtype="fp32")  # by default half the bytes are written, and read for each token
    main_export(str(stock), str(converted), task=kind, convert_tokenizer=False, ov_config=how_exact)
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    engine = openvino_genai.LLMPipeline(str(converted), "CPU", **threads)
    how = openvino_genai.GenerationConfig()
    how.max_new_tokens, how.do_sample, how.ignore_eos, how.stop_token_ids = text.new, False, True, {0}
    how.set_eos_token_id(0)

    def continued(ids: torch.Tensor) -> torch.Tensor:
        inputs = [openvino.Tensor(array) for array in (ids.numpy(), np.ones(ids.shape, np.int64))]
        added = engine.generate(openvino_genai.TokenizedInputs(*inputs), how).tokens
        return torch.cat([ids, torch.tensor(added)], dim=1)

    return repeated(text, continued)

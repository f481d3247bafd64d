"""The candidates of the generation benchmark: texts of ours and of each peer, from the same weights and prompts.

Every candidate runs in a process of its own (`workers`) and says how many tokens it added, and a hash of them: where
the architecture is the same, equal ids show that it did the same work. Sampled ids differ: everyone draws by itself.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .peer_models import VOCAB_SIZE, Task, litgpt_model, load, nanogpt_model, stock_model, tutorial_model


Work = Callable[[], dict[str, Any]]
Continue = Callable[[torch.Tensor], torch.Tensor]  # ids [rows, prompt] -> ids [rows, prompt + new tokens]

TEMPERATURE, TOP_K = 0.8, 50
NUM_PREFILLS = 4
NUM_READS = 16


@dataclass(frozen=True)
class Text:
    """What is generated: rows of a prompt of so many tokens, and how many are added; greedy or sampled."""

    rows: int
    prompt: int
    new: int
    sampled: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        """Keywords for those who know temperature and top-k; temperature 0 is greedy."""
        return {"temperature": TEMPERATURE, "top_k": TOP_K} if self.sampled else {"temperature": 0.0, "top_k": None}


def draw_prompts(text: Text) -> torch.Tensor:
    """Prompts [rows, prompt], the same for every candidate; each row has other tokens."""
    return torch.randint(VOCAB_SIZE, (text.rows, text.prompt), generator=torch.Generator().manual_seed(0))


def repeated(text: Text, continued: Continue) -> Work:
    """The work of a sample: the same texts again."""
    prompts = draw_prompts(text)

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            added = continued(prompts)[:, text.prompt :]
        digest = hashlib.sha256(added.contiguous().numpy().tobytes()).hexdigest()[:12]
        return {"tokens": added.numel(), "ids": digest}

    return work


def our_model(task: Task) -> Any:
    """Our model with the initial weights."""
    from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

    sizes = {"hidden_size": task.width, "num_hidden_layers": task.layers, "num_attention_heads": task.heads}
    ends = {"eos_token_id": None, "bos_token_id": 0, "pad_token_id": 0}  # a text must not end early
    config = GPTScratchConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=task.context, **sizes, **ends)
    model = GPTScratchForCausalLM(config).eval()
    load(model, load_file(task.weights), may_lack="lm_head")
    return model


def our_sampling(text: Text) -> dict[str, Any]:
    """Arguments of `generate()` as `scripts/generate.py` gives them."""
    from hf_gpt_scratch.generation.decoding import Decoding

    decoding = Decoding(text.new, text.sampling["temperature"], text.sampling["top_k"], past_context=None)
    return decoding.generation_arguments(range(text.rows))


def make_ours(task: dict[str, Any], text: dict[str, Any], int8: bool = False) -> Work:
    """`generate()` of our model as `scripts/generate.py` calls it; every sample packs the weights anew."""
    from hf_gpt_scratch.generation.fast_decoding import generate
    from hf_gpt_scratch.generation.quantization import quantize_int8

    model, text = our_model(Task(**task)), Text(**text)
    if int8:
        model = quantize_int8(model)
    return repeated(text, lambda ids: generate(model, ids, attention_mask=torch.ones_like(ids), **our_sampling(text)))


def make_payload(task: dict[str, Any], text: dict[str, Any]) -> Work:
    """`generate()` of our model as those have it who load a repository without this package."""
    model, text = our_model(Task(**task)), Text(**text)
    return repeated(text, lambda ids: model.generate(ids, attention_mask=torch.ones_like(ids), **our_sampling(text)))


def make_bare_loop(task: dict[str, Any], text: dict[str, Any]) -> Work:
    """What `generate()` would cost without itself: the same prepared model in a loop, greedy."""
    from hf_gpt_scratch.generation.fast_decoding import GrowingCache, prepared_for_decoding

    model, text = our_model(Task(**task)), Text(**text)

    def continued(ids: torch.Tensor) -> torch.Tensor:
        prepared = prepared_for_decoding(model, text.rows, text.new)
        cache, step = GrowingCache(), ids
        for _ in range(text.new):
            logits = prepared(step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            step = logits[:, -1].argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, step], dim=1)
        return ids

    return repeated(text, continued)


def make_transformers(task: dict[str, Any], text: dict[str, Any]) -> Work:
    """`generate()` of transformers' GPT-2, with its own processors."""
    model, text = stock_model(Task(**task)).eval(), Text(**text)
    model.config.use_cache = True
    model.generation_config.update(eos_token_id=None, pad_token_id=0, use_cache=True)
    how = {"do_sample": True, **text.sampling} if text.sampled else {"do_sample": False}
    length = {"min_new_tokens": text.new, "max_new_tokens": text.new}
    return repeated(text, lambda ids: model.generate(ids, attention_mask=torch.ones_like(ids), **length, **how))


def make_nanogpt(task: dict[str, Any], text: dict[str, Any], source: str) -> Work:
    """`generate()` of nanoGPT, which has no cache; the best of one token is its greedy one."""
    model, text = nanogpt_model(Task(**task), Path(source)).eval(), Text(**text)
    how = text.sampling if text.sampled else {"temperature": 1.0, "top_k": 1}
    return repeated(text, lambda ids: model.generate(ids, text.new, **how))


def make_litgpt(task: dict[str, Any], text: dict[str, Any]) -> Work:
    """The cached loops of litgpt for one prompt and for several; its positions are rotary, so its ids are others."""
    from litgpt.generate.base import batched_generate_fn, generate_fn

    model, text = litgpt_model(Task(**task)).eval(), Text(**text)
    length = text.prompt + text.new
    model.max_seq_length = length
    model.set_kv_cache(batch_size=text.rows)
    ends = {"include_prompt": False, "include_eos": False}

    def continued(ids: torch.Tensor) -> torch.Tensor:
        if text.rows == 1:
            added = torch.cat(list(generate_fn(model, ids[0], length, **text.sampling, **ends)))[None]
        else:
            steps = batched_generate_fn(model, ids, length, sample_args=text.sampling, **ends)
            added = torch.stack([torch.cat(step) for step in steps], dim=1)
        return torch.cat([ids, added], dim=1)

    return repeated(text, continued)


class LastRows:
    """A causal mask of which `[:, -n:]` are the last n rows, as a cached step needs them, not the last n columns."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def __getitem__(self, key: tuple[slice, slice]) -> torch.Tensor:
        return self.mask[key[1]]


class TorchForTutorial:
    """PyTorch as the tutorial's cached model sees it: version 1.0.19 cuts its mask along the wrong axis."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def triu(self, *arguments: Any, **kwargs: Any) -> LastRows:
        """A triangle whose last rows can be had."""
        return LastRows(torch.triu(*arguments, **kwargs))


def make_tutorial(task: dict[str, Any], text: dict[str, Any]) -> Work:
    """The tutorial's model with a key-value cache, in a loop of ours: its own calls what the class lacks."""
    from llms_from_scratch.kv_cache import gpt2
    from llms_from_scratch.kv_cache.utils import KVCache

    gpt2.torch = TorchForTutorial()
    task, text = Task(**task), Text(**text)
    model = tutorial_model(task, gpt2.GPTModel).eval()

    def continued(ids: torch.Tensor) -> torch.Tensor:
        model.current_pos, cache, step = 0, KVCache(task.layers), ids
        for _ in range(text.new):
            logits = model(step, use_cache=True, cache=cache)[:, -1]
            if text.sampled:
                best, places = torch.topk(logits, TOP_K)
                step = places.gather(1, torch.multinomial(torch.softmax(best / TEMPERATURE, dim=-1), 1))
            else:
                step = logits.argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, step], dim=1)
        return ids

    return repeated(text, continued)


def make_prefill(task: dict[str, Any], text: dict[str, Any], ours: bool) -> Work:
    """The first step of `generate()` alone: the prompt into a cache, and the logits of its last token."""
    model = (our_model if ours else stock_model)(Task(**task)).eval()
    prompts = draw_prompts(Text(**text))

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            for _ in range(NUM_PREFILLS):
                logits = model(prompts, use_cache=True, logits_to_keep=1).logits
        return {"ids": logits[:, -1].argmax(dim=-1).tolist(), "tokens": prompts.numel()}

    return work


def make_reading(task: dict[str, Any], text: dict[str, Any]) -> Work:
    """What the memory can do: as many bytes as the weights have, read once; `run` multiplies by the steps."""
    weights = torch.cat([tensor.flatten() for tensor in load_file(Task(**task).weights).values()])

    def work() -> dict[str, Any]:
        for _ in range(NUM_READS):
            weights.sum()
        return {"reads": NUM_READS, "megabytes": round(weights.nbytes / 1e6)}

    return work

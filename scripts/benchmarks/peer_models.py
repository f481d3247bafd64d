"""The same weights in our model and in those of the peers, for all benchmarks that compare them."""

from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

VOCAB_SIZE = 50257
NANOGPT_VOCAB_SIZE = 50304  # the rows that nanoGPT's own training gives its embedding, a multiple of 64


@dataclass(frozen=True)
class Task:
    """The work of a step: size of the model, batch, folder of the initial weights, precision and device."""

    layers: int
    width: int
    heads: int
    context: int
    rows: int
    length: int
    folder: str = ""
    precision: str = "no"  # of products, as Accelerate calls it: "no" or "bf16"
    device: str = "cpu"
    vocab_size: int = VOCAB_SIZE

    @property
    def weights(self) -> Path:
        """The file of the initial weights, under the names of our model."""
        return Path(self.folder) / "weights.safetensors"


# Our module -> that of GPT-2 in nanoGPT and transformers, of litgpt and of the tutorial. What has the same place there
# is joined, in this order.
OUTSIDE = {
    "model.embed_tokens": ("transformer.wte", "transformer.wte", "tok_emb"),
    "model.embed_positions": ("transformer.wpe", None, "pos_emb"),
    "model.norm": ("transformer.ln_f", "transformer.ln_f", "final_norm"),
}
LAYERS = ("model.layers", ("transformer.h", "transformer.h", "trf_blocks"))
INSIDE = {
    "input_layernorm": ("ln_1", "norm_1", "norm1"),
    "self_attn.q_proj": ("attn.c_attn", "attn.qkv", "att.W_query"),
    "self_attn.k_proj": ("attn.c_attn", "attn.qkv", "att.W_key"),
    "self_attn.v_proj": ("attn.c_attn", "attn.qkv", "att.W_value"),
    "self_attn.o_proj": ("attn.c_proj", "attn.proj", "att.out_proj"),
    "post_attention_layernorm": ("ln_2", "norm_2", "norm2"),
    "mlp.up_proj": ("mlp.c_fc", "mlp.fc", "ff.layers.0"),
    "mlp.down_proj": ("mlp.c_proj", "mlp.proj", "ff.layers.2"),
}
GPT2, LITGPT, TUTORIAL = range(3)


def draw_weights(task: Task, seed: int) -> None:
    """Write initial weights; biases and LayerNorms are drawn too, so that one in the wrong place changes the loss."""
    from hf_gpt_scratch.model import GPTScratchConfig, GPTScratchForCausalLM

    config = GPTScratchConfig(
        vocab_size=task.vocab_size,
        hidden_size=task.width,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        max_position_embeddings=task.context,
    )
    torch.manual_seed(seed)
    weights: dict[str, torch.Tensor] = dict(GPTScratchForCausalLM(config).named_parameters())
    with torch.no_grad():
        for weight in weights.values():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.02)
    save_file(weights, task.weights)


def renamed(task: Task, peer: int) -> dict[str, torch.Tensor]:
    """Return the initial weights as a peer's state dict."""
    names = {ours: theirs[peer] for ours, theirs in OUTSIDE.items() if theirs[peer] is not None}
    for layer in range(task.layers):
        prefixes = f"{LAYERS[0]}.{layer}", f"{LAYERS[1][peer]}.{layer}"
        names |= {f"{prefixes[0]}.{ours}": f"{prefixes[1]}.{theirs[peer]}" for ours, theirs in INSIDE.items()}
    weights = load_file(task.weights)
    parts: dict[str, list[torch.Tensor]] = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in weights:
                parts.setdefault(f"{theirs}.{kind}", []).append(weights[f"{ours}.{kind}"])
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def load(model: nn.Module, state: dict[str, torch.Tensor], may_lack: str = "no parameter") -> None:
    """Put a state dict into a model.

    Raises:
        ValueError: the model has parameters that are not in it, other than those of the module `may_lack`.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    buffers = {name for name, _ in model.named_buffers()}
    if lacking := [name for name in missing if name not in buffers and not name.startswith(may_lack)] + unexpected:
        raise ValueError(f"the weights do not fit {type(model).__name__}: {', '.join(lacking[:3])}")


def import_file(path: Path) -> ModuleType:
    """Import a module from its file."""
    loader = SourceFileLoader(path.stem, str(path))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


def nanogpt_model(task: Task, source: Path, vocab_size: int = VOCAB_SIZE) -> Any:
    """Return nanoGPT with GPT-2's form of GELU, so that its loss is the same; from its folder.

    Rows of the embedding beyond GPT-2's vocabulary are 0, which adds their part of the probability to the loss:
    0.001 nats for `NANOGPT_VOCAB_SIZE`.
    """
    module = import_file(source / "model.py")
    sizes = {"n_layer": task.layers, "n_head": task.heads, "n_embd": task.width, "block_size": task.context}
    model = module.GPT(module.GPTConfig(vocab_size=vocab_size, **sizes))
    for block in model.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    state = renamed(task, GPT2)
    embedding = state["transformer.wte.weight"]
    state["transformer.wte.weight"] = nn.functional.pad(embedding, (0, 0, 0, vocab_size - len(embedding)))
    load(model, state, may_lack="lm_head")
    return model


def stock_model(task: Task) -> "GPT2LMHeadModel":
    """Return transformers' GPT-2 without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_layer": task.layers, "n_head": task.heads, "n_embd": task.width}
    sizes["n_positions"] = task.context
    config = GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    model = GPT2LMHeadModel(config).train()
    is_turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # its layers keep them as [in, out]
    state = renamed(task, GPT2).items()
    load(model, {name: tensor.T if name.endswith(is_turned) else tensor for name, tensor in state}, "lm_head")
    return model


def litgpt_model(task: Task) -> Any:
    """Return litgpt's GPT in the same sizes, its head tied; it rotates where GPT-2 has learned positions."""
    from litgpt import GPT, Config

    sizes = {"n_layer": task.layers, "n_head": task.heads, "n_embd": task.width, "block_size": task.context}
    form = {"bias": True, "parallel_residual": False, "gelu_approximate": "tanh", "rotary_percentage": 1.0}
    model = GPT(Config(vocab_size=VOCAB_SIZE, padded_vocab_size=VOCAB_SIZE, **sizes, **form))
    model.lm_head.weight = model.transformer.wte.weight
    load(model, renamed(task, LITGPT), may_lack="lm_head")
    return model


def tutorial_model(task: Task, kind: type[nn.Module]) -> Any:
    """Return a model of the tutorial's package; its head is a matrix of its own, with the same first values."""
    sizes = {"n_layers": task.layers, "n_heads": task.heads, "emb_dim": task.width, "context_length": task.context}
    model = kind({"vocab_size": VOCAB_SIZE, "drop_rate": 0.0, "qkv_bias": True, **sizes})
    state = renamed(task, TUTORIAL)
    norms = {"weight": "scale", "bias": "shift"}
    for name in [name for name in state if "norm" in name]:
        module, _, kind_of_tensor = name.rpartition(".")
        state[f"{module}.{norms[kind_of_tensor]}"] = state.pop(name)
    load(model, state | {"out_head.weight": state["tok_emb.weight"]})
    return model

"""Models of other programs, written again from their parameter names and formulas, as an independent reference: the
tutorial's GPTModel and nanoGPT's GPT. transformers' GPT-2 is there to be used as it is, also for OpenAI's weights.
"""

import math

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


def draw(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter, so that a wrong or forgotten one is visible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = name.endswith("scale") or ("ln_" in name and name.endswith("weight"))
            parameter.normal_(1.0 if is_gain else 0.0, 0.2, generator=generator)
    return model.eval()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Causal attention, [B, T, C] each -> [B, T, C]."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    length = scores.shape[-1]
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class ScaleShift(nn.Module):
    """The tutorial's LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return self.scale * normed + self.shift


class TutorialAttention(nn.Module):
    def __init__(self, width: int, context: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.W_query, self.W_key, self.W_value = (nn.Linear(width, width, bias=qkv_bias) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(context, context).triu(1))

    def forward(self, x):
        return self.out_proj(attend(self.W_query(x), self.W_key(x), self.W_value(x), self.num_heads))


class TutorialFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.layers(x)


class TutorialBlock(nn.Module):
    def __init__(self, width: int, context: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.att = TutorialAttention(width, context, num_heads, qkv_bias)
        self.ff = TutorialFeedForward(width)
        self.norm1, self.norm2 = ScaleShift(width), ScaleShift(width)

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class TutorialGPT(nn.Module):
    def __init__(self, vocab, context, width, num_layers, num_heads, qkv_bias=False) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.trf_blocks = nn.Sequential(
            *(TutorialBlock(width, context, num_heads, qkv_bias) for _ in range(num_layers))
        )
        self.final_norm = ScaleShift(width)
        self.out_head = nn.Linear(width, vocab, bias=False)

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


class NanoAttention(nn.Module):
    def __init__(self, width: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)

    def forward(self, x):
        return self.c_proj(attend(*self.c_attn(x).chunk(3, dim=-1), self.num_heads))


class NanoMLP(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.gelu = nn.GELU()  # the exact form, unlike GPT-2's

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    def __init__(self, width: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn, self.mlp = NanoAttention(width, num_heads, bias), NanoMLP(width, bias)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    def __init__(self, vocab, context, width, num_layers, num_heads, bias=True) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList(NanoBlock(width, num_heads, bias) for _ in range(num_layers)),
                "ln_f": nn.LayerNorm(width, bias=bias),
            }
        )
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def to_stock(tensors: dict[str, np.ndarray], num_heads: int) -> GPT2LMHeadModel:
    """OpenAI's names to transformers' GPT-2: a mapping that the converter knows nothing of."""
    (vocab, width), (context, _) = tensors["model/wte"].shape, tensors["model/wpe"].shape
    num_layers = len([name for name in tensors if name.endswith("ln_1/g")])
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab, n_positions=context, n_embd=width, n_layer=num_layers, n_head=num_heads,
            bos_token_id=None, eos_token_id=None, attn_implementation="eager",
        )
    )  # fmt: skip
    state = {}
    for name, values in tensors.items():
        _, *path, last = name.split("/")
        path = [part if part[0] != "h" else f"h.{part[1:]}" for part in path]
        kind = {"g": "weight", "w": "weight", "b": "bias"}.get(last)
        theirs = ".".join([*path, kind]) if kind else f"{last}.weight"
        state[f"transformer.{theirs}"] = torch.tensor(values.squeeze(0) if last == "w" else values)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()

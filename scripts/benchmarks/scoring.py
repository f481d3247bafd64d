"""The loss of a model on the last tenth of a text, the same for every model: prints it as JSON."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.conversion.readers.torch_checkpoint import open_torch_checkpoint
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import TokenWindows, encode_text
from hf_gpt_scratch.evaluation import cross_entropy, sum_losses
from hf_gpt_scratch.runtime.files import read_json


LITGPT_CHECKPOINT = "lit_model.pth"


class PeerModel(nn.Module):
    """The model of a peer, called as ours is for its loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, shift_labels: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return `loss`, nats per token, a scalar; both arguments are int64 [B, T]."""
        output = self.network(input_ids)
        return SimpleNamespace(loss=cross_entropy(getattr(output, "logits", output), shift_labels))


def load_litgpt(folder: Path) -> Any:
    """Load litgpt's GPT with a tied head; ValueError: the head is a matrix of its own."""
    from litgpt import GPT, Config

    network = GPT(Config.from_file(folder / "model_config.yaml"))
    network.transformer.wte.weight = network.lm_head.weight
    tensors, _, _ = open_torch_checkpoint(folder / LITGPT_CHECKPOINT)
    state = {name: torch.tensor(tensors[name]) for name in tensors}
    if not torch.equal(state["lm_head.weight"], state["transformer.wte.weight"]):
        raise ValueError(f"the head of {folder} is not tied: train it with --train.tie_embeddings true")
    network.load_state_dict(state)
    return network


def load_model(folder: Path) -> tuple[nn.Module, int]:
    """Load a model of litgpt's, transformers' GPT-2 or ours, and count its parameters without those of positions."""
    if (folder / LITGPT_CHECKPOINT).is_file():
        litgpt = load_litgpt(folder)
        return PeerModel(litgpt), sum(parameter.numel() for parameter in litgpt.parameters())
    if read_json(folder / "config.json")["model_type"] == "gpt2":
        gpt2 = GPT2LMHeadModel.from_pretrained(folder)
        return PeerModel(gpt2), gpt2.num_parameters() - gpt2.transformer.wpe.weight.numel()
    ours = GPTScratchForCausalLM.from_pretrained(folder)
    return ours, ours.num_parameters() - ours.model.embed_positions.weight.numel()


def score(model: str, text: str, unit: str, context: int) -> dict[str, float | int]:
    """Score each token of the last tenth of the characters once.

    The windows do not overlap, but for the last, which reaches back for context.

    Args:
        model: its folder; one of litgpt has its `lit_model.pth`.
        text: a file; of ASCII characters, if models of both units are to be comparable.
        unit: of the token ids: "bytes", "gpt2", or "characters" by their place among those of the text, as nanoGPT
            has them.
        context: tokens of a window.

    Returns:
        The loss in nats per token, the tokens, and the parameters without those of positions.
    """
    whole = Path(text).read_text(encoding="utf-8")
    last = whole[int(0.9 * len(whole)) :]
    if unit == "characters":
        characters = {character: number for number, character in enumerate(sorted(set(whole)))}
        ids = torch.tensor([characters[character] for character in last])
    else:
        ids = encode_text(last, load_encoding(unit))  # of bytes in GPT-2's order, not that of their values
    network, parameters = load_model(Path(model))
    batch = 64 if unit != "gpt2" else 8  # logits of a large vocabulary are large
    total = sum_losses(network, DataLoader(TokenWindows(ids, context), batch))
    return {"loss": round(total.mean, 4), "scored tokens": total.num_tokens, "parameters": parameters}


if __name__ == "__main__":
    folder, file, kind, length = sys.argv[1:]
    print(json.dumps(score(folder, file, kind, int(length))))

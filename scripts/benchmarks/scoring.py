"""The loss of a model on the last tenth of a text, the same for every model: prints it as JSON."""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import TokenWindows, encode_text
from hf_gpt_scratch.evaluation import sum_losses


def score(model: str, text: str, unit: str, context: int) -> dict[str, float | int]:
    """Score each token of the last tenth of the characters once.

    The windows do not overlap, but for the last, which reaches back for context.

    Args:
        model: its folder.
        text: a file; of ASCII characters, if models of both units are to be comparable.
        unit: of the token ids: "bytes", or "characters" by their place among those of the text, as nanoGPT has them.
        context: tokens of a window.

    Returns:
        The loss in nats per token, the tokens, and the parameters without those of positions.
    """
    whole = Path(text).read_text(encoding="utf-8")
    last = whole[int(0.9 * len(whole)) :]
    if unit == "bytes":
        ids = encode_text(last, load_encoding(unit))  # GPT-2's order of the bytes, not that of their values
    else:
        characters = {character: number for number, character in enumerate(sorted(set(whole)))}
        ids = torch.tensor([characters[character] for character in last])
    network = GPTScratchForCausalLM.from_pretrained(model)
    total = sum_losses(network, DataLoader(TokenWindows(ids, context), 64))
    parameters = network.num_parameters() - network.model.embed_positions.weight.numel()
    return {"loss": round(total.mean, 4), "scored tokens": total.num_tokens, "parameters": parameters}


if __name__ == "__main__":
    folder, file, kind, length = sys.argv[1:]
    print(json.dumps(score(folder, file, kind, int(length))))

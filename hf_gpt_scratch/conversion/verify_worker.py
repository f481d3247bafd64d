"""Program that loads a folder as any user would and records what the model computes, in a process of its own.

It reads a request in JSON from stdin and leaves result.json and logits beside it. It imports nothing of this package
and makes sure that the folder does not either.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


# The parameters in float64 take 8 bytes each; beyond this number, float32 has to do.
MAX_FLOAT64_PARAMETERS = 1_000_000_000
WINDOW = 256  # tokens; what the tutorial scores at once
TRAIN_SHARE = 0.9  # of the characters; the tutorial's cut between training and validation text


def compared_sequences(context: int, vocab_size: int, text_ids: list[int]) -> dict[str, list[int]]:
    """Return the tokens that logits are compared on: some of all kinds, and the first of a text if there is one."""
    sequences = {"fixed": [(7919 * n + 13) % vocab_size for n in range(min(32, context))]}
    return sequences | ({"text": text_ids[: min(64, context)]} if text_ids else {})


def text_losses(model: Any, tokenizer: Any, text: str) -> dict[str, float]:
    """Mean cross-entropy in nats per token of the first nine tenths of a text, of the rest, and of all of it.

    Windows follow each other without overlap and a last one that is not full is left out, as in chapter 5 of the
    tutorial, so that its figures are met. A part that does not fill one window has no figure.
    """
    import torch

    size = min(WINDOW, model.config.max_position_embeddings)
    cut = int(TRAIN_SHARE * len(text))
    losses = {}
    for part, piece in (("first_nine_tenths", text[:cut]), ("last_tenth", text[cut:]), ("all", text)):
        ids = torch.tensor(tokenizer(piece, verbose=False)["input_ids"])
        starts = range(0, len(ids) - size, size)
        if starts:
            means = [
                torch.nn.functional.cross_entropy(
                    model(ids[start : start + size].unsqueeze(0)).logits[0].float(), ids[start + 1 : start + size + 1]
                ).item()
                for start in starts
            ]
            losses[part] = sum(means) / len(means)
    return losses


def load(folder: str, trust_remote_code: bool) -> Any:
    """Load the model in float32; nothing may be missing, unexpected or of another shape."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded  # a pair, which the library's annotation leaves out
    if unfit := {key: sorted(map(str, value)) for key, value in info.items() if value}:
        raise ValueError(f"the weights do not fit the model: {unfit}")
    if trust_remote_code and not type(model).__module__.startswith("transformers_modules."):
        raise ValueError(f"{type(model).__module__} was loaded, not the code of the folder")
    return model.eval()


def compute(request: dict[str, Any], exchange: Path) -> dict[str, Any]:
    """Load the folder and compute logits, which go into files in `exchange`, and losses."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    model = load(request["folder"], request["trust_remote_code"])
    context, vocab_size = model.config.max_position_embeddings, model.config.vocab_size
    ids, losses = [], {}
    with torch.no_grad():
        if request["text"] is not None:
            tokenizer = AutoTokenizer.from_pretrained(request["folder"], trust_remote_code=False)
            ids = tokenizer(request["text"], verbose=False)["input_ids"]
            losses = text_losses(model, tokenizer, request["text"])
        sequences = compared_sequences(context, vocab_size, ids)
        dtypes = ["float32", *(["float64"] if model.num_parameters() <= MAX_FLOAT64_PARAMETERS else [])]
        for dtype in dtypes:
            model.to(getattr(torch, dtype))
            for name, sequence in sequences.items():
                logits = model(torch.tensor([sequence]), use_cache=False).logits[0]
                np.save(exchange / f"{name}-{dtype}.npy", logits.numpy())
    return {
        "class": type(model).__name__,
        "num_parameters": model.num_parameters(),
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "sequences": sequences,
        "dtypes": dtypes,
        "losses": losses,
    }


def end_with(asker: int) -> None:
    """Exit soon after the process that asked was killed."""
    while os.getppid() == asker:
        time.sleep(0.2)
    os._exit(1)


def main() -> None:
    """Answer the one request."""
    # Importing it would now fail: the folder has to stand alone.
    sys.modules["hf_gpt_scratch"] = None  # type: ignore[assignment]  # documented: the import then fails
    request = json.load(sys.stdin)
    threading.Thread(target=end_with, args=(request["asker"],), daemon=True).start()
    exchange = Path(request["exchange"])
    result = compute(request, exchange)
    (exchange / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

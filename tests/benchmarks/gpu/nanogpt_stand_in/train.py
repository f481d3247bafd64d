"""Stands in for nanoGPT's file of this name: options, what it prints, and the checkpoint."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from model import GPT, GPTConfig


seed_offset = 0
torch.manual_seed(1337 + seed_offset)
settings_file, *words = sys.argv[1:]
options = dict(word.removeprefix("--").split("=") for word in words)
exec(Path(settings_file).read_text(encoding="utf-8"))
folder, out = Path("data") / dataset, Path(options["out_dir"])  # noqa: F821 of the file of settings
tokens = {part: np.fromfile(folder / f"{part}.bin", np.uint16).astype(np.int64) for part in ("train", "val")}
rows, length = int(options["batch_size"]), int(options["block_size"])
sizes = {name: int(options[name]) for name in ("n_layer", "n_head", "n_embd", "block_size")}
model_args = {"vocab_size": int(max(map(np.max, tokens.values()))) + 1, "bias": False, **sizes}
model = GPT(GPTConfig(**model_args))
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")


def loss_of(part):
    starts = torch.randint(len(tokens[part]) - length, (rows,)).tolist()
    windows = torch.stack([torch.from_numpy(tokens[part][start : start + length + 1]) for start in starts])
    return model(windows[:, :-1], windows[:, 1:])[1]


began = time.time()
for step in range(int(options["max_iters"]) + 1):
    if step % int(options["eval_interval"]) == 0:
        print(f"step {step}: train loss {loss_of('train'):.4f}, val loss {loss_of('val'):.4f}")
        torch.save({"model": model.state_dict(), "model_args": model_args, "iter_num": step}, out / "ckpt.pt")
    loss = loss_of("train")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    ended = time.time()
    print(f"iter {step}: loss {loss:.4f}, time {(ended - began) * 1000:.2f}ms, mfu -100.00%")
    began = ended

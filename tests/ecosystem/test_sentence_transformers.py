"""sentence-transformers: embeddings, their training, and a classifier of pairs, from an exported folder."""

from collections.abc import Callable
from pathlib import Path

import pytest


pytestmark = pytest.mark.ecosystem

TEXTS = [
    "The keeper went down to the sea.",
    "A lamp.",
    "Nobody on the ferry had seen the light before that night, and nobody saw it again.",
    "The tide took the boat out.",
]


def embed(path: str, texts: list[str]) -> dict:
    """Embeddings, those by hand, and those of a model that was trained, saved and loaded."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    model = SentenceTransformer(path, trust_remote_code=True, device="cpu")
    batch = model.encode(texts, convert_to_tensor=True)
    alone = torch.stack([model.encode(text, convert_to_tensor=True) for text in texts])
    by_hand = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        last = [by_hand(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts]

    pairs = Dataset.from_dict({"anchor": texts[:2], "positive": texts[2:]})
    arguments = SentenceTransformerTrainingArguments(
        "run", max_steps=8, learning_rate=1e-3, per_device_train_batch_size=2, logging_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model, arguments, pairs, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    trained = model.encode(texts, convert_to_tensor=True)
    model.save_pretrained("saved")
    again = SentenceTransformer("saved", trust_remote_code=True, device="cpu").encode(texts, convert_to_tensor=True)

    def difference(one: torch.Tensor, other: torch.Tensor) -> float:
        return (one - other).abs().max().item()

    return {
        "class": type(model[0].auto_model).__module__,
        "alone": difference(batch, alone),
        "by hand": difference(batch, torch.stack(last)),
        "trained": difference(batch, trained),
        "saved": difference(trained, again),
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
    }


@pytest.mark.works("sentence-transformers", "embeddings: encode, train, save, load")
def test_embeddings(call: Callable, repository: Path) -> None:
    report = call(embed, path=repository, texts=TEXTS)
    assert report["class"].startswith("transformers_modules.")
    assert report["alone"] < 1e-5
    assert report["by hand"] < 1e-5
    assert report["losses"][-1] < 0.7 * report["losses"][0]
    assert report["trained"] > 1e-2  # the control
    assert report["saved"] < 1e-6


def score_pairs(path: str, texts: list[str]) -> dict:
    """Scores of pairs in a batch and alone, before and after training."""
    import torch
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments

    torch.manual_seed(0)
    model = CrossEncoder(path, num_labels=1, trust_remote_code=True, device="cpu")
    pairs = [(one, other) for one in texts[:2] for other in texts[2:]]
    batch = model.predict(pairs)
    alone = [model.predict([pair])[0] for pair in pairs]
    one, other = zip(*pairs, strict=True)
    data = Dataset.from_dict({"one": one * 8, "other": other * 8, "label": [1.0, 0.0, 0.0, 1.0] * 8})
    arguments = CrossEncoderTrainingArguments(
        "run", max_steps=30, learning_rate=3e-3, per_device_train_batch_size=4, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    CrossEncoderTrainer(model, arguments, data).train()
    return {
        "alone": max(abs(float(a) - float(b)) for a, b in zip(batch, alone, strict=True)),
        "before": [float(score) for score in batch],
        "after": [float(score) for score in model.predict(pairs)],
    }


@pytest.mark.works("sentence-transformers", "`CrossEncoder`: train, score pairs")
@pytest.mark.nightly
def test_pairs(call: Callable, repository: Path) -> None:
    report = call(score_pairs, path=repository, texts=TEXTS)
    assert report["alone"] < 1e-5
    assert [score > 0.5 for score in report["after"]] == [True, False, False, True]
    assert [score > 0.5 for score in report["before"]] != [True, False, False, True]

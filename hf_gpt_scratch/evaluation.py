"""Evaluate a model on a text: cross-entropy in nats per token, perplexity, bits per byte."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch.data.pieces import cut_text
from hf_gpt_scratch.data.token_folder import ShardedTokens
from hf_gpt_scratch.data.tokenizer import load_encoding, text_to_token_ids
from hf_gpt_scratch.data.vocabulary import Vocabulary
from hf_gpt_scratch.data.vocabulary_folder import known_vocabulary
from hf_gpt_scratch.data.windows import IGNORE_INDEX, TokenWindows
from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss


PIECE_CHARS = 1 << 16  # tokenized at a time: meanwhile transformers' tokenizer takes hundreds of bytes for a token
BATCH_TOKENS = 4096  # scored at once by default: small windows are faster in large batches
COUNTED_STRETCHES, STRETCH_TOKENS = 64, 1 << 16  # of a longer text, for the bytes of a token


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-probability of the targets, nats per token; targets of -100 do not count.

    Args:
        logits: scores [..., V]; position t scores target t, so the shift by one has been done.
        targets: token ids [...], int64.
    """
    return nn.functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORE_INDEX)


def perplexity(loss: float) -> float:
    """exp(loss): the number of equally likely tokens that would be as hard to guess. Infinite beyond float range."""
    return math.exp(loss) if loss < math.log(torch.finfo(torch.float64).max) else math.inf


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Bits needed for a byte of text, from nats per token: comparable between models with different vocabularies."""
    return loss / math.log(2) / bytes_per_token


def mean_token_bytes(token_ids: torch.Tensor | ShardedTokens, vocabulary: Vocabulary) -> float:
    """Return the bytes of UTF-8 of a token, on average over those that are predicted: all but the first.

    `<|endoftext|>` counts with its spelling, as in a text that `evaluate_text` scores. Of more than four million
    tokens, stretches are counted that are spread over them.

    Args:
        token_ids: a text of at least two tokens, int64 [N] or the tokens of a folder of shards.
        vocabulary: of these ids.
    """
    lengths, num_targets = np.array(vocabulary.byte_lengths), len(token_ids) - 1
    if num_targets <= COUNTED_STRETCHES * STRETCH_TOKENS:
        return float(lengths[np.asarray(token_ids[1:])].mean())
    starts = [1 + number * num_targets // COUNTED_STRETCHES for number in range(COUNTED_STRETCHES)]
    stretches = [np.asarray(token_ids[start : start + STRETCH_TOKENS]) for start in starts]
    return float(lengths[np.concatenate(stretches)].mean())


@dataclass(frozen=True)
class LossSum:
    """A sum of losses that knows how many tokens it is over, so that sums can be joined without losing weight.

    The sum over batches of squared mean losses, each times its tokens, tells how far the mean can be relied on.
    """

    nats: float
    num_tokens: int
    squares: float = 0.0
    num_batches: int = 0

    @property
    def mean(self) -> float:
        """Cross-entropy in nats per token, NaN over no tokens."""
        return self.nats / self.num_tokens if self.num_tokens else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean in nats per token, for batches drawn from a longer text; NaN for fewer than two.

        It is that of the mean of `num_batches` independent values, each weighed by its tokens.
        """
        if self.num_batches < 2 or not self.num_tokens:
            return math.nan
        variance = max(0.0, self.squares / self.num_tokens - self.mean**2)
        return math.sqrt(variance / (self.num_batches - 1))

    def __add__(self, other: "LossSum") -> "LossSum":
        return LossSum(
            self.nats + other.nats,
            self.num_tokens + other.num_tokens,
            self.squares + other.squares,
            self.num_batches + other.num_batches,
        )


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; the training flag is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def sum_losses(
    model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], skip_logits: bool = False, num_together: int = 1
) -> LossSum:
    """Sum the loss over batches of `{"input_ids": [B, T], "shift_labels": [B, T]}` on the model's device.

    Each batch weighs as much as it has labels. The sum is kept in float64: with equally large batches the mean is
    the mean of the batch losses to the last digit, as the tutorial prints it. `skip_logits` has our model
    compute the losses without keeping logits: in less memory and time, with a last digit of its own. Then
    `num_together` batches pass through the model at once, which is faster for small ones, and are summed as they were.
    """
    total = LossSum(0.0, 0)
    # Other models do not know these.
    kwargs = {"skip_logits": True} | ({"reduction": "none"} if num_together > 1 else {}) if skip_logits else {}
    batches = iter(batches)
    with evaluation_mode(model):
        while together := list(islice(batches, num_together if skip_logits else 1)):
            joined = {name: torch.cat([batch[name] for batch in together]) for name in together[0]}
            # Also without a label that counts: where the weights are spread, the other processes need this one's part.
            losses = model(**joined, use_cache=False, **kwargs).loss
            # A head that is more than a matrix gives the mean of all in any case.
            parts = [joined] if losses.ndim == 0 else together
            means = [losses] if losses.ndim == 0 else losses.split([len(part["input_ids"]) for part in parts])
            for part, mean in zip(parts, means, strict=True):
                num_tokens = int((part["shift_labels"] != IGNORE_INDEX).sum())
                if num_tokens:
                    nats = mean.item() if mean.ndim == 0 else (mean.sum() / num_tokens).item()
                    total += LossSum(nats * num_tokens, num_tokens, nats**2 * num_tokens, 1)
    return total


@dataclass(frozen=True)
class TextEvaluation:
    """The figures of one text under one model."""

    loss: float  # nats per token
    num_tokens: int  # predicted tokens
    num_bytes: int  # UTF-8

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits needed for a byte of text: comparable between models with different vocabularies."""
        return self.loss * self.num_tokens / math.log(2) / self.num_bytes


def evaluate_text(
    model: PreTrainedModel,
    text: str | Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None = None,
    batch_size: int | None = None,
    show_progress: Callable[[int], None] = lambda num_bytes: None,
) -> TextEvaluation:
    """Score every token of a text, in windows of `block_size` tokens (none: the context of the model).

    `batch_size` of them are scored at once (none: as many as have 4,096 tokens). The text is preceded by the model's
    first token, so that its own first token is predicted too; for the windows see `window_batches`. A text in blocks
    is not held in memory, where the tokenizer allows it: see `tokenize_in_pieces`. `show_progress` is told after each
    batch about how many bytes are scored. ValueError: the windows are longer than the context of the model, or the
    text is empty.
    """
    context = model.config.max_position_embeddings
    block_size = block_size or context
    if not 0 < block_size <= context:
        raise ValueError(f"--block_size {block_size} is longer than the context of the model, {context} tokens")
    batch_size = batch_size or max(1, BATCH_TOKENS // block_size)
    num_bytes = num_tokens = 0  # that the tokenizer has read and given

    def parts() -> Iterator[torch.Tensor]:
        nonlocal num_bytes, num_tokens
        yield torch.tensor([tokenizer.bos_token_id])
        for token_ids, length in tokenize_in_pieces([text] if isinstance(text, str) else text, tokenizer):
            num_bytes, num_tokens = num_bytes + length, num_tokens + len(token_ids)
            yield token_ids

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        num_scored = 0
        for batch in window_batches(parts(), block_size, batch_size):
            yield {name: tensor.to(model.device) for name, tensor in batch.items()}
            num_scored += int((batch["shift_labels"] != IGNORE_INDEX).sum())
            show_progress(num_bytes * num_scored // num_tokens)

    use_fused_loss(model)
    total = sum_losses(model, batches(), skip_logits="skip_logits" in inspect.signature(model.forward).parameters)
    return TextEvaluation(total.mean, total.num_tokens, num_bytes)


def window_batches(
    parts: Iterable[torch.Tensor], block_size: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of windows of a row of token ids that comes in parts.

    The windows do not overlap, but for the last, which reaches back for context, as lm-evaluation-harness scores
    rolling windows.
    """
    for stretch in cut_into_stretches(parts, batch_size * block_size, block_size):
        # A plain loader, which fills up no batch; with a generator of its own it draws from nobody's.
        yield from DataLoader(TokenWindows(stretch, block_size), batch_size, generator=torch.Generator())


def tokenize_in_pieces(
    blocks: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[torch.Tensor, int]]:
    """Token ids, int64 [N], and bytes of UTF-8 of each piece of a text that comes in blocks of any length.

    The tokens are those of the whole text, but for one word of more than `PIECE_CHARS` characters. A tokenizer that
    does not split texts as GPT-2's does gets the text in one piece.
    """
    pieces: Iterator[str]
    if splits_like_gpt2(tokenizer):
        pieces = (piece for piece, _ in cut_text(blocks, PIECE_CHARS))
    else:
        pieces = iter(["".join(blocks)])
    vocabulary = known_vocabulary(tokenizer)
    encoding = tokenizer if vocabulary is None else load_encoding(vocabulary)  # the same ids, several times as fast
    for piece in pieces:
        yield text_to_token_ids(piece, encoding)[0], len(piece.encode("utf-8"))


def splits_like_gpt2(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if a tokenizer ends a token before each blank that follows another character, whatever follows."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    splitter = getattr(backend, "pre_tokenizer", None)
    if backend is None or not isinstance(splitter, ByteLevel) or not splitter.use_regex or splitter.add_prefix_space:
        return False
    added = tokenizer.added_tokens_decoder.values()
    takes_blanks = any(token.lstrip or token.rstrip or len(token.content.split()) != 1 for token in added)
    return backend.normalizer is None and not takes_blanks


def cut_into_stretches(parts: Iterable[torch.Tensor], length: int, reserve: int) -> Iterator[torch.Tensor]:
    """Cut a row of token ids that comes in parts into stretches with `length` tokens to predict each.

    The first token of a stretch is the last of the one before. The last stretch has at least `reserve` tokens to
    predict, if there are as many, so that a window at the end finds tokens to reach back to.
    """
    rest = torch.empty(0, dtype=torch.long)
    for part in parts:
        rest = torch.cat([rest, part])
        while len(rest) > length + reserve:
            yield rest[: length + 1]
            rest = rest[length:]
    yield rest

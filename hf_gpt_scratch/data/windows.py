"""From text files, or shards of tokens, to batches of token windows.

A text, or a folder of shards, is one row of token ids. It is cut into windows of `block_size` inputs, each with the
token that follows every input as its label, so that each token but the first is predicted exactly once in an epoch.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hf_gpt_scratch.data.document_sources import Source, find_files, kind_of, refuse_unused_column, silent
from hf_gpt_scratch.data.documents import SkippedRows, refuse_blank
from hf_gpt_scratch.data.pieces import Piece, cut_string, cut_text
from hf_gpt_scratch.data.preparation.tokenizing import encode_in_order
from hf_gpt_scratch.data.token_folder import ShardedTokens
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT
from hf_gpt_scratch.data.window_order import KeyedOrder


IGNORE_INDEX = -100  # the label that PyTorch's cross-entropy skips
PADDING_WINDOW = -1  # the index of a window whose labels are all skipped


def find_text_files(paths: Sequence[str | Path], say: Callable[[str], None] = silent) -> list[Path]:
    """List the given files and, sorted by path, the files with text below the given folders: see `find_files`.

    Text, JSON lines and parquet are found; a file of another kind that is named itself is read as text.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no such file, or a file cannot be read.
    """
    return find_files(paths, ("text", "JSON lines", "parquet"), others_are_text=True, say=say)


def read_blocks(
    paths: Sequence[str | Path], text_column: str = "text", say: Callable[[str], None] = silent
) -> tuple[int, Iterator[str]]:
    """Read files and folders as one text in blocks, so that it is never all in memory; they are checked at once.

    `<|endoftext|>` stands between two documents. A text file is a document, and so is the `text_column` of each row of
    JSON lines and parquet.

    Args:
        paths: files and folders.
        text_column: key or column of rows.
        say: hears what was found in folders.

    Returns:
        The number of bytes of the text in UTF-8, and its blocks.

    Raises:
        FileNotFoundError, ValueError: a file is missing, has no text or cannot be read; the line names it.
    """
    files = find_text_files(paths, say)
    refuse_unused_column(files, text_column)
    num_bytes = sum(len(block.encode("utf-8")) for block in document_blocks(files, text_column))
    return num_bytes, document_blocks(files, text_column)


def document_blocks(files: Sequence[Path], text_column: str) -> Iterator[str]:
    """Yield the documents of files in blocks, `<|endoftext|>` between two documents; rows without text are skipped."""
    separator = ""
    for path in files:
        is_blank = begins = True
        for piece in Source(str(path), kind_of(path) or "text", None).read(text_column, SkippedRows(stops=True)):
            text = piece.content
            if not isinstance(text, str):
                raise ValueError(f"{path} holds tokens, not text: make a folder of it with hf-gpt-scratch prepare")
            has_text = bool(text.strip())
            if has_text or not (begins and piece.ends_document):
                if begins:
                    yield separator
                    separator = END_OF_TEXT
                yield text
            is_blank, begins = is_blank and not has_text, piece.ends_document
        if is_blank:
            refuse_blank(path)


def split_blocks(
    files: Sequence[Path], text_column: str, train_fraction: float
) -> tuple[Iterator[str], Iterator[str]]:
    """Cut the text of files after `train_fraction` of its characters, as the tutorial does: (training, validation).

    Both come in blocks, as of `document_blocks`, so that the text is never all in memory; the files are read for each.
    """
    num_chars = sum(len(block) for block in document_blocks(files, text_column))
    cut = int(train_fraction * num_chars)

    def part(start: int, stop: int) -> Iterator[str]:
        position = 0
        for block in document_blocks(files, text_column):
            yield block[max(0, start - position) : max(0, stop - position)]
            position += len(block)

    return part(0, cut), part(cut, num_chars)


def encode_text(text: str | Iterable[str], encoding: tiktoken.Encoding) -> torch.Tensor:
    """Turn a text, whole or in blocks, into token ids, int64 [N], with as many threads as PyTorch has.

    `<|endoftext|>` in the text becomes the one token of that name. Blocks are not kept: 12 bytes of memory a token.
    """
    cut = cut_string(text) if isinstance(text, str) else cut_text(text)
    pieces = ((None, Piece(content, ends_document, 0.0)) for content, ends_document in cut)
    encoded = [ids for _, _, ids in encode_in_order(pieces, torch.get_num_threads(), encoding, special=True)]
    return torch.from_numpy(np.concatenate([ids for ids in encoded if ids is not None], dtype=np.int64))


class TokenWindows(Dataset):
    """Windows of `block_size` tokens, each with the labels that follow.

    Item i is `{"input_ids": [T], "shift_labels": [T]}`, both int64, where `shift_labels[t]` is the token after
    `input_ids[t]`. What does not fill a window at the end becomes a last window that reaches back, with the labels
    that the window before already had replaced by `IGNORE_INDEX`. Item `PADDING_WINDOW` has only such labels.

    With a `separator` there are also `position_ids` [T], int64, by which the model keeps documents apart: they start
    again at each `<|endoftext|>`. As input it begins the document after it, as label it ends the one before.

    Args:
        token_ids: the text, int64 [N], or the tokens of a folder of shards.
        block_size: T, the number of tokens of a window.
        drop_last: leave out the end that does not fill a window.
        separator: id of `<|endoftext|>`, to let no document see another one in its window.

    Raises:
        ValueError: fewer than `block_size` + 1 tokens where `drop_last`, fewer than 2 otherwise; or no row of ids.
    """

    def __init__(
        self,
        token_ids: torch.Tensor | ShardedTokens,
        block_size: int,
        drop_last: bool = False,
        separator: int | None = None,
    ) -> None:
        if isinstance(token_ids, torch.Tensor) and (token_ids.ndim != 1 or token_ids.is_floating_point()):
            raise ValueError(
                f"token_ids has shape {list(token_ids.shape)} and dtype {token_ids.dtype}, not [N] of an integer dtype"
            )
        num_targets = len(token_ids) - 1
        needed = block_size if drop_last else 1
        if num_targets < needed:
            raise ValueError(
                f"the text has {len(token_ids)} tokens, but one window needs {needed + 1}: give a longer text or a "
                "smaller --block_size"
            )
        self.token_ids = token_ids
        self.separator = separator
        self.block_size = min(block_size, num_targets)
        self.num_full_windows, self.num_tail_targets = divmod(num_targets, self.block_size)
        if drop_last:
            self.num_tail_targets = 0

    def __len__(self) -> int:
        return self.num_full_windows + (self.num_tail_targets > 0)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        is_tail = index == self.num_full_windows
        start = len(self.token_ids) - 1 - self.block_size if is_tail else max(index, 0) * self.block_size
        span = torch.from_numpy(np.asarray(self.token_ids[start : start + self.block_size + 1]).astype(np.int64))
        input_ids, labels = span[:-1], span[1:].clone()
        if index == PADDING_WINDOW:
            labels[:] = IGNORE_INDEX
        elif is_tail:
            labels[: self.block_size - self.num_tail_targets] = IGNORE_INDEX
        window = {"input_ids": input_ids, "shift_labels": labels}
        if self.separator is not None:
            window["position_ids"] = positions_in_documents(input_ids, self.separator)
        return window

    def fingerprint(self) -> bytes:
        """SHA-256 of the token ids, or of the hashes of their shards: a resumed run must be on the same text."""
        if isinstance(self.token_ids, ShardedTokens):
            return self.token_ids.fingerprint()
        return hashlib.sha256(self.token_ids.numpy().data).digest()

    @property
    def num_targets(self) -> int:
        """The number of labels that count: predicted tokens in one pass."""
        return self.num_full_windows * self.block_size + self.num_tail_targets


def positions_in_documents(input_ids: torch.Tensor, separator: int) -> torch.Tensor:
    """Restart positions from 0 at each `separator`: int64 [T] -> int64 [T]."""
    slots = torch.arange(len(input_ids))
    starts = torch.where(input_ids == separator, slots, 0).cummax(0).values
    return slots - starts


class StepSampler(Sampler[list[int]]):
    """The window indices of each optimizer step, over all processes and micro-batches of that step.

    The order is that of `torch.randperm` under `order_seed`, or ascending without one; `is_keyed` takes `KeyedOrder`
    instead, which needs no memory however many windows there are. All steps have `batch_size` indices; the last is
    filled up with `PADDING_WINDOW`, or left out if `drop_last`. With `first_step` the steps before it are skipped
    without touching the data. Without an order, `num_sampled` takes as many windows, spread evenly over all.
    """

    def __init__(self, num_windows: int, batch_size: int, drop_last: bool = False, is_keyed: bool = False) -> None:
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.is_keyed = is_keyed
        self.order_seed: int | None = None
        self.first_step = 0
        self.num_sampled = num_windows

    def __len__(self) -> int:
        full, rest = divmod(self.num_sampled, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def _order(self) -> Sequence[int] | torch.Tensor | KeyedOrder:
        if self.num_sampled < self.num_windows:  # the middle one of each of equal parts
            return [(2 * part + 1) * self.num_windows // (2 * self.num_sampled) for part in range(self.num_sampled)]
        if self.order_seed is None:
            return range(self.num_windows)
        if self.is_keyed:
            return KeyedOrder(self.num_windows, self.order_seed)
        return torch.randperm(self.num_windows, generator=torch.Generator().manual_seed(self.order_seed))

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for step in range(self.first_step, len(self)):
            indices = [int(index) for index in order[step * self.batch_size : (step + 1) * self.batch_size]]
            yield indices + [PADDING_WINDOW] * (self.batch_size - len(indices))


def build_loader(windows: TokenWindows, batch_size: int, drop_last: bool = False) -> DataLoader:
    """Build a loader of whole optimizer steps; its order is set on `loader.batch_sampler`, a `StepSampler`.

    The loader has a generator of its own: by default each new iterator would draw a number from PyTorch's global
    one, and dropout after an evaluation or a resume would no longer be the same. Texts keep the order that published
    runs depend on; shards take the one without memory.
    """
    is_keyed = isinstance(windows.token_ids, ShardedTokens)
    sampler = StepSampler(len(windows), batch_size, drop_last, is_keyed)
    return DataLoader(windows, batch_sampler=sampler, generator=torch.Generator())


def epoch_order_seed(seed: int, epoch: int) -> int:
    """Derive the seed of the window order of an epoch: a pure function, so that any process can recompute it."""
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_like_torch_loader(shuffle: bool) -> int | None:
    """Draw from PyTorch's global generator what a plain `DataLoader` draws, and return its shuffling seed.

    A new iterator takes a base seed for its workers; with `shuffle`, `RandomSampler` then takes the seed of its
    permutation (torch/utils/data/dataloader.py and sampler.py). Published runs depend on these draws.
    """
    torch.empty((), dtype=torch.int64).random_()
    return int(torch.empty((), dtype=torch.int64).random_().item()) if shuffle else None

"""Train a byte-level BPE on texts of any size: a bounded part of them, spread evenly, on all cores."""

import json
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm.auto import tqdm

from hf_gpt_scratch.data.document_sources import Source, kind_of
from hf_gpt_scratch.data.documents import SkippedRows
from hf_gpt_scratch.data.pieces import cut_string
from hf_gpt_scratch.data.tokenizer import encode_to_numpy, load_encoding
from hf_gpt_scratch.data.tokenizer_files import tokenizer_rules
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, OWN, Vocabulary, hash_rules, spell_tokens
from hf_gpt_scratch.data.vocabulary_folder import parse_vocabulary


MIN_VOCAB_SIZE = 257  # the bytes and <|endoftext|>
# The trainer keeps the count of each distinct word, not the text. They grow more slowly than it, and past this much
# text they change rare merges alone.
SAMPLE_BYTES = 1 << 28
MIN_SAMPLE_BYTES = 1 << 16  # blocks of a smaller one would cut words
MIN_FREQUENCY = 2  # a pair that was seen once would make a token for one place
MEASURED_BYTES = 1 << 20
BLOCK_CHARS = 1 << 16


@dataclass
class Quota:
    """A number of bytes, taken from texts as evenly as they come."""

    num_bytes: int  # to take at most
    taken: int = 0

    def takes(self, size: int, share: float) -> bool:
        """Take `size` bytes that end after `share` of the texts, if that share of the quota allows it."""
        if self.taken + size > self.num_bytes * share:
            return False
        self.taken += size
        return True


@dataclass
class TextSample:
    """The part of texts that a vocabulary is trained on, in blocks; a smaller part of that is kept to measure it."""

    files: Sequence[Path]  # text, JSON lines and parquet
    text_column: str = "text"  # key or column of rows; rows without text are left out, and counted in `skipped`
    sample_bytes: int = SAMPLE_BYTES  # of UTF-8 to take at most
    skipped: SkippedRows = field(default_factory=lambda: SkippedRows(stops=False))
    measured: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        """Read the texts once, and yield the blocks of the sample.

        Raises:
            ValueError, OSError: a file cannot be read; the line names it.
        """
        quota, kept = Quota(self.sample_bytes), Quota(min(self.sample_bytes, MEASURED_BYTES))
        for block, share in self._blocks(max(1, min(BLOCK_CHARS, self.sample_bytes >> 6))):
            size = len(block.encode("utf-8"))
            if size and quota.takes(size, share):
                if not self.measured or kept.takes(size, share):
                    self.measured.append(block)
                # It is not a word, and its parts would be counted as words.
                yield from block.split(END_OF_TEXT)

    def _blocks(self, block_chars: int) -> Iterator[tuple[str, float]]:
        """Yield blocks, between which GPT-2's pattern ends a word, and the share of all bytes that ends with each."""
        before = 0.0
        for text, after in self._texts():
            end = 0
            for block, _ in cut_string(text, block_chars):
                end += len(block)
                yield block, before + (after - before) * end / max(len(text), 1)
            before = after

    def _texts(self) -> Iterator[tuple[str, float]]:
        """Yield the texts in pieces, and which share of all bytes of the files ends with each."""
        sizes = [path.stat().st_size for path in self.files]
        total, before, reached = max(sum(sizes), 1), 0, 0.0
        with tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="counting words", leave=False) as bar:
            for path, num_bytes in zip(self.files, sizes, strict=True):
                known, since = 0.0, 0  # bytes of the file that are read for sure, and of text after them
                source = Source(str(path), kind_of(path) or "text", None)
                for piece in source.read(self.text_column, self.skipped):
                    text = piece.content if isinstance(piece.content, str) else ""
                    known, since = known + piece.num_bytes, 0 if piece.num_bytes else since + len(text.encode("utf-8"))
                    reached = max(reached, before + min(known + since, num_bytes))
                    bar.update(reached - bar.n)
                    yield text, reached / total
                before += num_bytes


def train_vocabulary(texts: TextSample, vocab_size: int) -> Vocabulary:
    """Train a vocabulary of at most `vocab_size` tokens; `<|endoftext|>` is the last of them.

    Raises:
        ValueError, OSError: a file cannot be read, or there is no text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr is not None and sys.stderr.isatty(),
    )
    feed(tokenizer, texts, trainer)
    if not texts.measured:
        left_out = f"; {texts.skipped.count} bad rows, the first: {texts.skipped.first}" if texts.skipped.count else ""
        raise ValueError(f"the sources hold no text{left_out}: give files with text in them")
    merges = [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = [*spell_tokens(merges), END_OF_TEXT]
    made = Vocabulary(hash_rules(tokens, merges), OWN, tuple(tokens), tuple(merges), len(tokens) - 1)
    return parse_vocabulary(json.dumps(tokenizer_rules(made)), "the trained vocabulary")  # proves it


def feed(tokenizer: Tokenizer, texts: Iterable[str], trainer: trainers.BpeTrainer) -> None:
    """Train in a thread, so that a signal is heard at once: the library reads the texts in threads of its own.

    After a signal the reading stops; the joining of pairs cannot be stopped, and ends with the process.
    """
    stopped, finished = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def blocks() -> Iterator[str]:
        for block in texts:
            if stopped.is_set():
                raise InterruptedError
            yield block

    def work() -> None:
        try:
            tokenizer.train_from_iterator(blocks(), trainer)
        except Exception as error:
            errors.append(error)
        finally:
            finished.set()

    try:
        threading.Thread(target=work, daemon=True).start()
        while not finished.wait(0.1):
            pass
    finally:
        stopped.set()
        # Python must not end while the library calls the iterator: that would abort the process.
        finished.wait(0.5)
    if errors:
        raise errors[0]


def bytes_per_token(texts: Sequence[str], vocabulary: Vocabulary | str) -> float:
    """Return how many bytes of UTF-8 a token of the texts has on average."""
    encoding = load_encoding(vocabulary)
    num_tokens = sum(len(encode_to_numpy(text, encoding, special=False)) for text in texts)
    return sum(len(text.encode("utf-8")) for text in texts) / num_tokens

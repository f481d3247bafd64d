"""Documents as pieces of bounded length, cut only where the tokens stay those of the whole document."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


PIECE_CHARS = 1 << 20
# A blank after a character that is none. There GPT-2's pattern ends a token in any case: no alternative of it goes on
# from other characters to white space, and none looks back. Python's \S excludes at least what tiktoken's does.
LAST_CUT = re.compile(r"(?s).*\S(?=[ \n])")
# Where there is no such place: before any other white space; before the last white space of a run, with which GPT-2's
# pattern begins again; or between two of it that no token of GPT-2's holds together (it has two line ends as a token).
WHITE = r"[^\S\x1c-\x1f]"  # the four are white space for Python alone
OTHER_CUT = re.compile(rf"(?s).*(?:\S(?={WHITE})|{WHITE}(?={WHITE}\S)|[\t-\r ](?=[\t\v-\r ])|[\t\v-\r ](?=\n))")


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one."""

    content: str | np.ndarray | None  # text, or token ids that another program made; None: not needed any more
    ends_document: bool
    num_bytes: float  # of its source, as a share of them where the source is compressed


def cut_text(blocks: Iterable[str], piece_chars: int = PIECE_CHARS) -> Iterator[tuple[str, bool]]:
    """Cut one document, given in blocks of any length, into pieces of at most `piece_chars` characters.

    The cuts depend on the document alone, not on its blocks. A stretch of that length without any place to cut is cut
    at its end: a run of line ends keeps its tokens of GPT-2, a word or a run of no-break spaces may get others than in
    one go, and so may any white space of that length with another vocabulary.

    Returns:
        Each piece, and whether it is the last; an empty document is one empty piece.
    """
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > piece_chars:
            cut = LAST_CUT.match(rest, 0, piece_chars) or OTHER_CUT.match(rest, 0, piece_chars + 1)
            end = cut.end() if cut else piece_chars
            yield rest[:end], False
            rest = rest[end:]
    yield rest, True


def cut_string(text: str, piece_chars: int = PIECE_CHARS) -> Iterator[tuple[str, bool]]:
    """Cut a document that is in memory, as `cut_text` does."""
    return cut_text((text[start : start + piece_chars] for start in range(0, len(text), piece_chars)), piece_chars)

"""Proof, in one pass over a vocabulary, that tiktoken and tokenizers give the same ids for every text.

tokenizers merges the pairs of its list. tiktoken joins two neighbors whose bytes are a token, of those with the lowest
id first, whatever its merge is. Let each token's bytes, encoded by tiktoken's rule with the lower ids alone, end in
exactly the two parts of its merge: then tiktoken reaches no token by another way than by its merge.
"""

from collections.abc import Sequence


def unproved_merges(merges: Sequence[tuple[str, str]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """List the merges whose parts are not what the lower ids make of their token; none: the libraries agree.

    Args:
        merges: pairs of spellings, in order of the ids of what they make.
        ids: id of each ordinary token by its spelling, one character for each byte.
    """
    return [(first, second) for first, second in merges if join_below(first + second, ids) != [first, second]]


def join_below(token: str, ids: dict[str, int]) -> list[str]:
    """Encode the bytes of a token by tiktoken's rule, with the ids below its own."""
    limit = ids[token]
    parts = list(token)
    ranks = [ids.get(first + second, limit) for first, second in zip(parts, parts[1:], strict=False)]
    while ranks and (lowest := min(ranks)) < limit:
        place = ranks.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del ranks[place]
        if place > 0:
            ranks[place - 1] = ids.get(parts[place - 1] + parts[place], limit)
        if place < len(ranks):
            ranks[place] = ids.get(parts[place] + parts[place + 1], limit)
    return parts

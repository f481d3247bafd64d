"""Proves that other ids are seen, and ids that do not depend on the prompt."""

import pytest

from scripts.benchmarks.gpu.plan import REHEARSAL
from scripts.benchmarks.gpu.proof_of_decoding import build, check_past_context, greedy, one_by_one, same


def test_other_ids_are_seen():
    assert same([[1, 2], [3, 4]], [[1, 2], [3, 4]]).lines == ["2 rows of 2 ids"]
    with pytest.raises(ValueError, match="1 of 2 rows differ"):
        same([[1, 2], [3, 5]], [[1, 2], [3, 4]])


def test_prompts_matter():
    assert len(set(map(tuple, one_by_one(build(REHEARSAL))))) == 3
    with pytest.raises(ValueError, match="would see nothing"):
        same([[1], [1]], [[1], [1]])


def test_the_two_ways_past_the_context_differ(monkeypatch):
    """The loop of one way is not that of the other."""
    check_past_context(REHEARSAL, "exact")
    monkeypatch.setattr(
        "scripts.benchmarks.gpu.proof_of_decoding.greedy",
        lambda model, ids, past_context, **options: greedy(model, ids, past_context="rolling", **options),
    )
    with pytest.raises(ValueError, match="rows differ"):
        check_past_context(REHEARSAL, "exact")

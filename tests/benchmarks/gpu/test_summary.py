"""Proves that the table tells each item, each limit, and what did not reach its end."""

from scripts.benchmarks.gpu.record import DONE, FAILED, MISSING, UNFINISHED
from scripts.benchmarks.gpu.summary import count_line, summary_lines, unfinished
from scripts.benchmarks.measuring import describe_limit


def item(result, lines, seconds=1.0, limits=()):
    return {"result": result, "lines": lines, "seconds": seconds, "limits": list(limits), "figures": {}}


PROOF = {
    "part": "proof",
    "machine": {"device": "cuda:0 (A card)", "versions": {"torch": "2.11"}},
    "items": {
        "logits": item(DONE, ["the same", "and more"], limits=[describe_limit("MFU", [0.5], "at least", 0.55)]),
        "flash": item(MISSING, ["the package"]),
        "int8": item(FAILED, ["ValueError: no"]),
        "resume": item(UNFINISHED, [], None),
    },
    "ended": "at its time limit",
    "seconds": 99.6,
}
NOT_STARTED = {"part": "decoding", "items": {}}
WHOLE = {"part": "trainings", "items": {"loss": item(DONE, ["1.47"])}, "ended": "at its end", "seconds": 3.0}


def test_lines():
    lines = [line.split() for line in summary_lines([PROOF, NOT_STARTED, WHOLE])]
    assert lines[0] == ["cuda:0", "(A", "card)"]
    assert ["logits", "done", "1.0", "s", "the", "same"] in lines
    assert ["and", "more"] in lines
    assert ["MFU", "0.50", "/", "0.50", "/", "0.50", "at", "least", "0.55", "NOT", "MET"] in lines
    assert ["flash", "not", "there", "1.0", "s", "the", "package"] in lines
    assert ["resume", "NOT", "FINISHED"] in lines


def test_counts_and_ends():
    assert count_line(PROOF) == (
        "proof: 1 done, 1 not there, 1 FAILED, 1 NOT FINISHED; ended at its time limit after 100 s"
    )
    assert count_line(NOT_STARTED) == "decoding: nothing; not started"


def test_what_did_not_pass():
    assert list(unfinished(PROOF)) == ["proof, int8", "proof, resume", "proof"]
    assert list(unfinished(NOT_STARTED)) == ["decoding"]
    assert list(unfinished(WHOLE)) == []

"""Proves the figures of a comparison by hand: MFU, ratios, memory, and that other work is not let in."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from scripts.benchmarks.gpu import step_speed
from scripts.benchmarks.gpu.plan import REHEARSAL
from scripts.benchmarks.gpu.step_candidates import NANOGPT, OURS, OURS_EAGER, STOCK
from scripts.benchmarks.gpu.step_speed import by_token, compare_steps, other_work, outcome_of
from scripts.benchmarks.measuring import Measurement


def sample(speed, peak, losses=(10.9, 10.8, 10.7)):
    details = {"tokens_per_second": speed, "peak_bytes": peak * 2**20, "model": speed * 1e9, "product": 5e14}
    return Measurement(1.0, 1.0, 1.0, details | {"losses": list(losses)})


def test_limits_by_hand():
    results = {
        OURS: [sample(300_000.0, 600), sample(280_000.0, 600)],
        NANOGPT: [sample(250_000.0, 1000), sample(250_000.0, 1000)],
        STOCK: [sample(200_000.0, 1000), sample(200_000.0, 1000)],
    }
    outcome = outcome_of({name: [by_token(one) for one in samples] for name, samples in results.items()}, {"x": "no"})
    reached = {limit["text"]: (limit["reached"][1], limit["met"]) for limit in outcome.limits}
    assert reached == {
        f"MFU, {OURS}": (pytest.approx(0.58), True),
        f"{NANOGPT} / {OURS}": (pytest.approx(1.16), True),
        f"{STOCK} / {OURS}": (pytest.approx(1.45), True),
        f"memory, {OURS} / {NANOGPT}": (pytest.approx(0.6), True),
        f"memory, {OURS} / {STOCK}": (pytest.approx(0.6), False),
    }
    assert any("MFU  58.0%" in line for line in outcome.lines)
    assert outcome.lines[-2].split() == ["x", "no"]
    assert outcome.lines[-1] == "a product in bf16 reaches 500.00 / 500.00 / 500.00 TFLOP/s"


def test_other_work_is_named():
    near, far = (10.901, 10.8, 10.7), (10.9, 10.8, 9)
    firsts = {OURS: sample(1.0, 1), NANOGPT: sample(1.0, 1, near), STOCK: sample(1.0, 1, far)}
    assert list(other_work(firsts)) == [STOCK]
    assert other_work(firsts)[STOCK] == (
        "does other work: its first losses are [10.9, 10.8, 9], ours [10.9, 10.8, 10.7]"
    )
    assert other_work({STOCK: firsts[STOCK]}) == {}


class SlowOrBroken:
    """Workers of which one never gets ready, and one fails."""

    def __init__(self, candidate, threads):
        self.name, self.killed = candidate.name, threading.Event()
        self.process = SimpleNamespace(kill=self.killed.set)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def sample(self):
        if self.name == STOCK:
            self.killed.wait(60)
        if self.name in (STOCK, OURS_EAGER):
            raise ValueError("broken")
        return sample(100.0, 1)


def test_what_is_known_is_told_as_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(step_speed, "Worker", SlowOrBroken)
    monkeypatch.setattr(step_speed, "draw_weights", lambda *_, **__: None)
    outcomes = list(compare_steps(replace(REHEARSAL, start_seconds=0.5), tmp_path))
    assert [one.lines[0] for one in outcomes] == ["no round yet"] * 2 + [
        "1 candidates, tokens/s min / median / max:"
    ] * 2
    assert [len(one.figures["candidates"].get(OURS, [])) for one in outcomes[2:]] == [1, 2]
    assert outcomes[-1].figures["failures"] == {
        NANOGPT: "not there, without --nanogpt", OURS_EAGER: "ValueError: broken", STOCK: "not ready after 0 s"
    }  # fmt: skip

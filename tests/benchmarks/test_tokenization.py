"""Proves that the benchmark of tokenisation runs as typed, and that other ids do not go unseen."""

import json
import subprocess
import sys

import pytest

from hf_gpt_scratch.data.tokenizer import load_encoding
from scripts.benchmarks.growth import documents
from scripts.benchmarks.measuring import Measurement
from scripts.benchmarks.tokenization import candidates, refuse_other_work


@pytest.fixture(scope="module")
def report(project_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "x.json"
    command = [
        sys.executable,
        project_root / "scripts" / "benchmark.py",
        "data",
        "--megabytes",
        "0.1",
        "--rounds",
        "1",
    ]
    process = subprocess.run([*command, "--threads", "2", "--json", path], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.commands
def test_all_make_the_ids_of_the_same_documents(report, tmp_path):
    assert set(report["candidates"]) == {one.name for one in candidates(tmp_path, 2)}
    expected = sum(len(load_encoding().encode_ordinary(text)) for text in documents(100_000))
    details = [sample["details"] for samples in report["candidates"].values() for sample in samples]
    assert {one["tokens"] for one in details} == {expected}
    assert len({one["ids"] for one in details}) == 1


@pytest.mark.commands
def test_limits_are_judged_by_the_figures(report):
    one = {name: samples[0] for name, samples in report["candidates"].items()}
    assert len(report["limits"]) == 3
    for limit in report["limits"]:
        figure, _, sides = limit["text"].partition(" time, ")
        numerator, _, denominator = sides.partition(" / ")
        assert limit["reached"] == pytest.approx([one[numerator][figure] / one[denominator][figure]] * 3)


def test_other_ids_are_refused():
    def samples(ids):
        return [Measurement(1, 1, 1, {"ids": ids})]

    refuse_other_work({"ours": samples("a"), "peer": samples("a")})
    with pytest.raises(ValueError, match="not the same"):
        refuse_other_work({"ours": samples("a"), "peer": samples("b")})

"""Proves that the generation benchmark runs as typed, and that nobody takes part who adds fewer or other tokens."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from scripts.benchmarks.generation import OURS, READING, SETTINGS, STOCK, check_work, limits_of
from scripts.benchmarks.generation_runs import LastRows, Text, make_ours, make_transformers
from scripts.benchmarks.measuring import Measurement
from scripts.benchmarks.peer_models import Task, draw_weights


TINY = {**SETTINGS["tiny"].model, "rows": 2, "length": 8}


def run_script(root, *arguments):
    command = [sys.executable, root / "scripts" / "benchmark.py", "generate", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report(project_root, tmp_path_factory):
    """Content of the JSON file and lines printed, two rounds of all that need no other package."""
    path = tmp_path_factory.mktemp("benchmark") / "x.json"
    process = run_script(project_root, "--settings", "tiny", "--rounds", "2", "--json", str(path))
    assert process.returncode == 0, process.stderr
    report = json.loads(path.with_name("x-tiny.json").read_text(encoding="utf-8"))
    return report | {"lines": process.stdout.splitlines()}


@pytest.mark.nightly
def test_all_add_the_same_tokens(report):
    details = {name: samples[-1]["details"] for name, samples in report["candidates"].items()}
    names = {"ours", "ours, int8", "ours, without generate()", "ours, without the package", "transformers"}
    assert set(details) == names | {READING}
    assert {details[name]["tokens"] for name in names} == {80}
    assert len({details[name]["ids"] for name in names - {"ours, int8"}}) == 1
    line = next(line for line in report["lines"] if line.startswith("transformers  "))
    assert line.endswith(f"tokens 80  ids {details[STOCK]['ids']}")
    assert report["left_out"] == [
        "litgpt (rotary positions), without --peer_python",
        "tutorial, cached, without --peer_python",
        "nanoGPT (no cache), without --nanogpt",
    ]


@pytest.mark.nightly
def test_limits_are_judged_by_the_samples(report):
    samples = report["candidates"]
    limits = {limit["text"]: limit for limit in report["limits"]}
    assert set(limits) == {"transformers / ours", "transformers / ours, int8"}
    for ours, limit in (("ours", 1.25), ("ours, int8", 2.3)):
        values = [peer["wall"] / our["wall"] for peer, our in zip(samples[STOCK], samples[ours], strict=True)]
        assert limits[f"transformers / {ours}"]["reached"][::2] == pytest.approx([min(values), max(values)])
        assert limits[f"transformers / {ours}"]["limit"] == limit


def test_another_model_or_a_shorter_text_cannot_take_part(tmp_path):
    """From the same weights transformers is let in; from others, and with a token less, it is not."""
    task = Task(**TINY, folder=str(tmp_path))
    text = Text(rows=2, prompt=8, new=40)
    draw_weights(task, seed=0)
    ours = Measurement(1.0, 1.0, 1.0, make_ours(vars(task), asdict(text))())

    def compare(text):
        details = make_transformers(vars(task), asdict(text))()
        check_work({OURS: [ours], STOCK: [Measurement(1.0, 1.0, 1.0, details)]}, SETTINGS["tiny"])

    compare(text)
    with pytest.raises(ValueError, match="transformers added 78 tokens, ours 80"):
        compare(Text(rows=2, prompt=8, new=39))
    draw_weights(task, seed=1)
    with pytest.raises(ValueError, match="transformers does other work: its ids are"):
        compare(text)


def test_a_sampled_text_has_other_ids(tmp_path):
    task = Task(**TINY, folder=str(tmp_path))
    draw_weights(task, seed=0)
    greedy, sampled = (
        make_ours(vars(task), asdict(Text(2, 8, 40, sampled=is_sampled)))() for is_sampled in (False, True)
    )
    assert greedy["tokens"] == sampled["tokens"]
    assert greedy["ids"] != sampled["ids"]


def test_part_of_the_bandwidth_by_hand():
    """128 tokens need 128 readings; 16 take a second, the text ten."""
    reading = Measurement(1.0, 1.0, 1.0, {"reads": 16})
    results = {OURS: [Measurement(1.0, 10.0, 1.0)], READING: [reading]}
    (limit,) = limits_of(results, SETTINGS["1-greedy"])
    assert limit["text"] == "part of the memory's bandwidth"
    assert limit["reached"] == pytest.approx([0.8] * 3)
    assert list(limits_of(results, SETTINGS["8-greedy"])) == []


def test_the_last_rows_of_a_mask():
    """What the tutorial's package takes for the last columns."""
    mask = torch.triu(torch.ones(4, 4, dtype=torch.bool), diagonal=1)
    assert torch.equal(LastRows(mask)[:, -1:], mask[-1:])
    assert torch.equal(LastRows(mask)[:, -4:], mask)


@pytest.mark.parametrize("option", ["--settings", "--only"])
def test_unknown_names_end_in_one_line(project_root, option):
    process = run_script(project_root, option, "GPT-5")
    assert process.returncode == 1
    assert process.stderr.startswith("error: unknown 'GPT-5': choose from ")
    assert len(process.stderr.splitlines()) == 1

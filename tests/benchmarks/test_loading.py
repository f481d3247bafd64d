"""Proves that loading draws no weights first, and that the benchmark of loading and starting runs as typed."""

import json
import subprocess
import sys

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
from scripts.benchmarks.loading import TOUCHED, WAYS, refuse_other_work
from scripts.benchmarks.measuring import Measurement


def draws_numbers(make):
    before = torch.get_rng_state()
    make()
    return not torch.equal(before, torch.get_rng_state())


def test_loading_draws_no_weights(finished_folder):
    assert not draws_numbers(lambda: GPTScratchForCausalLM.from_pretrained(finished_folder))
    assert not draws_numbers(lambda: load_model_and_tokenizer(str(finished_folder)))
    config = GPTScratchConfig.from_pretrained(finished_folder)
    assert draws_numbers(lambda: GPTScratchForCausalLM(config)), "the control: a fresh model draws its weights"


@pytest.mark.slow
def test_all_take_part(project_root, tmp_path):
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "load", "--size", "tiny", "--rounds", "1"]
    process = subprocess.run([*command, "--json", tmp_path / "x.json"], capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    load, start = (json.loads((tmp_path / f"x-{part}.json").read_text()) for part in ("weights", "start"))
    assert set(load["candidates"]) == {way + end for way in WAYS for end in ("", TOUCHED)}
    assert len({samples[0]["details"]["sum"] for samples in load["candidates"].values()}) == 1
    assert len(load["limits"]) == 6
    (limit,) = start["limits"]
    ours, imports = (start["candidates"][name][0]["wall"] for name in ("start of train.py", "imports and a model"))
    assert limit["reached"] == pytest.approx([ours / imports] * 3)


def test_other_values_are_refused():
    def samples(total):
        return [Measurement(1, 1, 1, {"sum": total})]

    refuse_other_work({"ours": samples(1.0), "peer": samples(1.00001)})
    with pytest.raises(ValueError, match="the same sum"):
        refuse_other_work({"ours": samples(1.0), "peer": samples(1.1)})

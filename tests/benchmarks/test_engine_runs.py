"""Proves that engines are given the model of the benchmark, and that they run in the Python that has them."""

import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from scripts.benchmarks.engine_runs import make_ctranslate2, save_stock_model
from scripts.benchmarks.generation import OURS, SETTINGS, STOCK, candidates_of
from scripts.benchmarks.generation_runs import Text, make_ours, our_model
from scripts.benchmarks.peer_models import Task, draw_weights


SETTING = SETTINGS["tiny-engines"]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    task = Task(**SETTING.task_fields(str(tmp_path)))
    draw_weights(task, seed=0)
    return task


def test_the_saved_model_is_ours_and_its_tokens_are_numbers(task: Task) -> None:
    folder = save_stock_model(task)
    ids = torch.tensor([[5, 40_000, 7]])
    with torch.no_grad():
        logits = [model(ids).logits for model in (GPT2LMHeadModel.from_pretrained(folder).eval(), our_model(task))]
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids[0].tolist()) == ["5", "40000", "7"]


@pytest.mark.ecosystem
def test_ctranslate2_adds_our_tokens(task: Task) -> None:
    text = asdict(Text(**SETTING.text_fields))
    assert make_ctranslate2(vars(task), text)() == make_ours(vars(task), text)()


def test_engines_run_in_the_python_that_has_them() -> None:
    arguments = Namespace(only=None, engine_python=Path("engine"))
    pythons = {one.name: one.python for one in candidates_of(SETTING, {}, arguments)}
    own = Path(sys.executable)
    assert pythons == {OURS: own, STOCK: own, "CTranslate2": Path("engine"), "OpenVINO GenAI": Path("engine")}
    arguments.engine_python = None
    assert [one.name for one in candidates_of(SETTING, {}, arguments)] == [OURS, STOCK]

"""Proves that a release of transformers that renames what the shipped code relies on is refused in one line when the
code is loaded, and never computes something else in silence.
"""

from pathlib import Path

import pytest

from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
from tests import fresh_interpreter
from tests.versions import probes


def load_with(change, exported, folder):
    """The outcome of loading and generating with a transformers 6.7.8 that has renamed something."""
    calls = {"future": ("future", {"change": change})}
    return fresh_interpreter.run(folder, calls, functions=Path(probes.__file__), env={"EXPORTED": str(exported)})


def assert_refused(outcome):
    """In one line that names the version and the way out."""
    classes, message = outcome.raised("future")
    assert {"ImportError", "ValueError"} & set(classes), message
    assert "\n" not in message.strip()
    assert "6.7.8" in message
    assert "--export_stock" in message or "pip install" in message


@pytest.mark.parametrize("change", ["Cache.update", "Cache.get_seq_length"])
def test_renamed_methods_of_the_cache_are_refused(exported, tmp_path, change):
    assert_refused(load_with(change, exported, tmp_path / "own"))


@pytest.mark.parametrize("change", ["nothing", "mask argument", "forward argument"])
def test_renamed_arguments_change_no_text(exported, tmp_path, change):
    """Code that does not rely on the argument goes on as ever."""
    outcome = load_with(change, exported, tmp_path / "own")
    if "error" in outcome.report["future"]:
        assert change != "nothing", outcome.report["future"]["traceback"]
        assert_refused(outcome)
        return
    model, _ = load_model_and_tokenizer(str(exported / "tiny"))
    ids = model.generate(probes.IDS, attention_mask=probes.MASK, do_sample=False, max_new_tokens=20)
    assert outcome.returned("future")["ids"] == ids[:, probes.IDS.shape[1] :].tolist()

"""Without TransformerLens; what it does with it, tests/engines/test_interpretability.py looks at."""

import importlib
import sys

import pytest


def test_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(ImportError, match=r"^this needs TransformerLens: pip install 'transformer-lens>=4\.3'$"):
        importlib.import_module("hf_gpt_scratch.interpretability.transformer_lens")

"""Proves what stands behind the page, without a browser: bars, texts, lines for mistakes. The page: tests/browser."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from packaging.specifiers import SpecifierSet
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.generation.decoding import generate_text
from hf_gpt_scratch.generation.demo import DemoModel
from tests.pyproject import PYPROJECT


@pytest.fixture(scope="module")
def model() -> GPTScratchForCausalLM:
    torch.manual_seed(0)
    config = GPTScratchConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    return GPTScratchForCausalLM(config).eval()


@pytest.fixture
def demo(model: GPTScratchForCausalLM) -> DemoModel:
    return DemoModel(model, build_tokenizer(32))


def heights(figure: Figure) -> torch.Tensor:
    """The bars [2, 12]: as the model gives them, as they are drawn from."""
    return torch.tensor([[bar.get_height() for bar in bars] for bars in figure.axes[0].containers])


@pytest.mark.parametrize(("temperature", "top_k"), [(1.4, 5), (0.3, 0), (0.0, 7), (5.0, 12)])
def test_bars_are_the_probabilities(demo: DemoModel, temperature: float, top_k: int) -> None:
    """Against transformers' own order of things, in double precision."""
    with torch.no_grad():
        scores = demo.model(demo.tokenizer("The lamp", return_tensors="pt").input_ids).logits[0, -1].double()
    best = scores.argsort(descending=True)
    kept = best[: top_k or None]
    changed = torch.zeros_like(scores)
    changed[kept] = (scores[kept] / max(temperature, 1e-9)).softmax(dim=0)
    expected = torch.stack([scores.softmax(dim=0), changed])[:, best[:12]]
    figure = demo.draw_bars("The lamp", temperature, top_k)
    torch.testing.assert_close(heights(figure).double(), expected, rtol=1e-4, atol=1e-8)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == [repr(demo.tokenizer.decode([token])) for token in best[:12].tolist()]
    name = f"temperature {temperature:g}, " + (f"top-k {top_k}" if top_k else "all tokens")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["temperature 1, all tokens", name]


def test_a_slider_costs_no_forward_pass(demo: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = heights(demo.draw_bars("The lamp", 1.0, 5))
    monkeypatch.setattr(demo.model, "forward", None)  # whoever calls it fails
    assert not torch.equal(heights(demo.draw_bars("The lamp", 0.5, 5)), first)
    with pytest.raises(TypeError):
        demo.draw_bars("The lamps", 0.5, 5)


def test_a_text_ends_with_what_gives_it_again(demo: DemoModel) -> None:
    *growing, (text, line) = demo.write("The lamp", 1.4, 25, 20, 7)
    expected = generate_text(
        demo.model, demo.tokenizer, "The lamp", temperature=1.4, top_k=25, max_new_tokens=20, seed=7
    )
    assert text == expected
    assert line.startswith("done in ")
    assert line.endswith("; seed 7 gives this text again")
    assert {line for _, line in growing} == {"writing..."}
    (drawn, line) = list(demo.write("The lamp", 1.4, 25, 20, None))[-1]
    seed = int(line.split("seed ")[1].split()[0])
    assert list(demo.write("The lamp", 1.4, 25, 20, seed))[-1][0] == drawn


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (
            ("The lamp", -1.0, 25, 20, 7),
            "error: temperature must be a number, at least 0 and finite, got -1.0; 0 is greedy",
        ),
        (("The lamp", 1.0, -3, 20, 7), "error: top_k must be an integer of at least 0 or None, got -3"),
        (("The lamp", 1.0, 25, 0, 7), "error: max_new_tokens must be at least 1, got 0"),
        (("The lamp", 1.0, 25, 20, -7), "error: seed must be from 0 to 2**63 - 1, got -7"),
    ],
)
def test_a_mistake_is_one_line(demo: DemoModel, request_: tuple, line: str) -> None:
    ((text, actual),) = demo.write(*request_)
    assert text == ""
    assert actual.startswith(line)
    assert "\n" not in actual


def test_a_model_that_is_not_ours_says_what_does_not_fit() -> None:
    stock = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    demo = DemoModel(stock, build_tokenizer(32))
    ((_, line),) = demo.write("The lamp", 1.0, 25, 40, 7)
    assert "do not fit the context of 32 tokens: ask for at most 30 new ones, or shorten the prompt" in line
    assert list(demo.write("The lamp", 1.0, 25, 5, 7))[-1][0].startswith("The lamp")


def test_without_gradio_the_script_says_what_to_install(project_root: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['gradio'] = None", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, project_root / "scripts" / "demo.py"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stderr.splitlines() == ["error: the demo needs gradio: pip install gradio"]
    assert result.returncode == 1


def test_the_space_installs_what_the_package_needs(project_root: Path) -> None:
    """What the Space reads, and the versions that the tests pass with."""
    project = PYPROJECT["project"]
    requirements = (project_root / "scripts" / "space" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert requirements == project["dependencies"]
    readme = (project_root / "scripts" / "space" / "README.md").read_text(encoding="utf-8")
    settings = yaml.safe_load(readme.split("---\n")[1])
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    pins = (project_root / ".ci" / "constraints.txt").read_text(encoding="utf-8").split()
    assert f"gradio=={settings['sdk_version']}" in pins
    assert settings["python_version"] in SpecifierSet(project["requires-python"])

"""TransformerLens, nnsight, captum and inseq with an exported folder: what they see is what plain hooks see.

Each runs in a process of its own environment; only TransformerLens, which needs our adapter, can import this package.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.conversion.export import export_stock
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.repository import build_repository
from tests.conftest import draw_weights
from tests.engines.environments import INSEQ, TRANSFORMER_LENS, Engine, run
from tests.engines.interpretability_child import ABLATED, NEW, WEIGHTS, zero
from tests.readme import ROOT, read_blocks


pytestmark = [pytest.mark.engines, pytest.mark.timeout(2400)]

CHILD = Path(__file__).with_name("interpretability_child.py")
TOLERANCE = 1e-5
DIFFERENT = 1e-3
TEXT = "The lamp stood on the table"
# As GPT-2 has it, and with all that the configuration can change.
OTHER = {"norm_type": "rmsnorm", "qkv_bias": False, "tie_word_embeddings": False}
OTHER |= {"layer_norm_eps": 1e-2, "intermediate_size": 48, "hidden_act": "relu"}
VARIANTS = {"gpt2": {}, "other": OTHER}

Looked = dict[str, torch.Tensor | str]


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return build_tokenizer()(TEXT, return_tensors="pt")["input_ids"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose every weight is drawn, so that a part that is left out or mixed up changes what is seen."""
    made = {}
    for name, changes in VARIANTS.items():
        config = GPTScratchConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=40,
            dropout=0.0,
            **changes,
        )
        model = GPTScratchForCausalLM(config)
        draw_weights(model)
        made[name] = build_repository(model.eval(), tmp_path_factory.mktemp("exported") / f"drawn-{name}")
    return made


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def ablated(module: torch.nn.Module) -> contextmanager:
    return hooked(module, lambda module, inputs, output: zero(output))


def generate(model: GPTScratchForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)


@torch.no_grad()
def by_plain_hooks(model: GPTScratchForCausalLM, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each part of the model gives, and what comes of the text where one MLP gives zeros."""
    seen: dict[str, torch.Tensor] = {}
    parts = {"norm": model.model.norm}
    for layer, block in enumerate(model.model.layers):
        parts |= {f"layer {layer}": block, f"attention {layer}": block.self_attn.o_proj, f"mlp {layer}": block.mlp}
    handles = [
        part.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
        for name, part in parts.items()
    ]
    output = model(ids, output_attentions=True)
    for handle in handles:
        handle.remove()
    seen |= {"logits": output.logits, "generated": generate(model, ids)}
    for layer, weights in enumerate(output.attentions):
        seen[f"weights {layer}"] = weights
        seen[f"lens {layer}"] = model.lm_head(model.model.norm(seen[f"layer {layer}"]))
    with ablated(model.model.layers[ABLATED].mlp):
        seen |= {"ablated": model(ids).logits, "generated ablated": generate(model, ids)}
    return seen


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, GPTScratchForCausalLM]:
    """With attention in plain PyTorch, which alone has weights to show."""
    return {
        name: GPTScratchForCausalLM.from_pretrained(folder, attn_implementation="eager")
        for name, folder in folders.items()
    }


@pytest.fixture
def look(ids: torch.Tensor, tmp_path: Path) -> Callable[..., Looked]:
    """Return a function that has a tool look inside a folder, in a process that finds this package where it may."""

    def call(engine: Engine, tool: str, folder: Path, with_package: bool = False) -> Looked:
        report = tmp_path / f"{tool} of {folder.name}.safetensors"
        words = [CHILD, tool, folder, report, *ids[0].tolist()]
        if with_package:
            run(engine, tmp_path, "python", *words, python_path=ROOT)
        else:
            run(engine, tmp_path, "python", "-I", *words)
        with safe_open(report, "pt") as file:
            looked = {name: file.get_tensor(name) for name in file.keys()} | file.metadata()  # noqa: SIM118
        assert looked["package"] == str(with_package)
        return looked

    return call


def assert_seen(looked: Looked, seen: dict[str, torch.Tensor], *beginnings: str) -> None:
    """Assert that all that the hooks saw under such names was given, and is equal."""
    names = [name for name in seen if name.startswith(beginnings)]
    assert {name.split()[0] for name in names} == {beginning.split()[0] for beginning in beginnings}
    for name in names:
        assert (looked[name] - seen[name]).abs().max() <= TOLERANCE, name


def test_what_is_compared_tells_one_part_from_another(models: dict, ids: torch.Tensor) -> None:
    """The control: nothing that the hooks see is within the tolerance of anything else of its kind."""
    for model in models.values():
        seen = by_plain_hooks(model, ids)
        pairs = [("logits", "ablated"), ("layer 2", "norm"), ("lens 1", "logits")]
        pairs += [(f"{kind} {a}", f"{kind} {b}") for kind in ("layer", "attention", "mlp", "weights", "lens")
                  for a, b in ((0, 1), (1, 2), (0, 2))]  # fmt: skip
        for name, other in pairs:
            assert (seen[name] - seen[other]).abs().max() > DIFFERENT, (name, other)
        assert not torch.equal(seen["generated"], seen["generated ablated"])


@pytest.mark.works("transformer_lens", "activations, attention weights, zero-ablation, logit lens, `generate`")
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformer_lens(variant: str, look: Callable, folders: dict, models: dict, ids: torch.Tensor) -> None:
    looked = look(TRANSFORMER_LENS, "transformer_lens", folders[variant], with_package=True)
    seen = by_plain_hooks(models[variant], ids)
    assert_seen(looked, seen, "layer", "attention", "mlp", "weights", "norm", "lens", "logits", "ablated")
    assert torch.equal(looked["generated"], seen["generated"])
    assert torch.equal(looked["generated without cache"], seen["generated"])


@pytest.mark.works("transformer_lens", "folded weights, as of the stock export")
def test_transformer_lens_folds_weights(
    look: Callable, folders: dict, models: dict, ids: torch.Tensor, tmp_path: Path
) -> None:
    """What its own adapter for GPT-2 makes of the stock export is the reference."""
    export_stock(folders["gpt2"], tmp_path / "stock", verify=False)
    of_folder = {"stock": tmp_path / "stock", **folders}
    looked = {
        name: look(TRANSFORMER_LENS, "folded_weights", one, with_package=True) for name, one in of_folder.items()
    }
    architectures = ["GPT2LMHeadModel", "GPTScratchForCausalLM", "GPTScratchForCausalLM"]
    assert [one["architecture"] for one in looked.values()] == architectures
    for name in WEIGHTS:
        torch.testing.assert_close(looked["gpt2"][name], looked["stock"][name], rtol=0, atol=TOLERANCE)
    as_they_are = models["gpt2"].model.layers[0].mlp.up_proj.weight.T
    assert (looked["gpt2"]["W_in"][0] - as_they_are).abs().max() > DIFFERENT
    for variant, model in models.items():
        expected = model(ids).logits.log_softmax(-1)
        torch.testing.assert_close(looked[variant]["log-probabilities"], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.works("nnsight", "activations, zero-ablation, logit lens, `generate` with and without an intervention")
def test_nnsight(look: Callable, folders: dict, models: dict, ids: torch.Tensor) -> None:
    looked, seen = look(TRANSFORMER_LENS, "nnsight", folders["gpt2"]), by_plain_hooks(models["gpt2"], ids)
    assert_seen(looked, seen, "layer", "attention", "mlp", "norm", "lens", "logits", "ablated", "generated")


@pytest.mark.works("captum", "activations, zero-ablation, attributions with `use_cached_outputs=False`")
def test_captum(look: Callable, folders: dict, models: dict, ids: torch.Tensor) -> None:
    looked, model = look(TRANSFORMER_LENS, "captum", folders["gpt2"]), models["gpt2"]
    seen = by_plain_hooks(model, ids)
    assert_seen(looked, seen, "layer", "attention", "mlp")
    best = seen["logits"][0, -1].argmax()
    loss = seen["logits"][0, -1, best] - seen["ablated"][0, -1, best]
    torch.testing.assert_close(looked["loss of logit"], loss, rtol=0, atol=TOLERANCE)

    @torch.no_grad()
    def log_probabilities(text: torch.Tensor) -> torch.Tensor:
        return model(text).logits[0, -3:-1].log_softmax(-1)[torch.arange(2), text[0, -2:]]

    prompt = range(ids.shape[1] - 2)
    without = [ids.index_fill(1, torch.tensor([place]), 0) for place in prompt]
    expected = torch.stack([log_probabilities(ids) - log_probabilities(text) for text in without], dim=1)
    for name in ("by token", "at once"):
        torch.testing.assert_close(looked[name], expected, rtol=0, atol=TOLERANCE)
    assert expected.abs().min() > DIFFERENT
    # With its cache and transformers 5 it gives all tokens again, which a stock GPT-2 takes in silence.
    lengths = f"{len(prompt) + 1} of {len(prompt)} cached + {len(prompt) + 1} new tokens"
    assert looked["with cache"] == (
        f"attention_mask covers {lengths}: lengthen it, or leave what is cached out of input_ids"
    )


@pytest.mark.works("inseq", "saliency, occlusion, attention")
def test_inseq(look: Callable, folders: dict, models: dict, ids: torch.Tensor) -> None:
    looked, model = look(INSEQ, "inseq", folders["gpt2"]), models["gpt2"]
    prompt, target = ids[:, :-1], ids[0, -1]
    embedded = model.model.embed_tokens(prompt).detach().requires_grad_()
    output = model(inputs_embeds=embedded, output_attentions=True)
    logit = output.logits[0, -1, target]
    (gradient,) = torch.autograd.grad(logit, embedded)
    weights = torch.stack([of_layer[0, :, -1] for of_layer in output.attentions])  # [layers, heads, tokens]
    with torch.no_grad():
        end = model.config.eos_token_id
        without = [prompt.index_fill(1, torch.tensor([place]), end) for place in range(prompt.shape[1])]
        losses = torch.stack([(logit - model(text).logits[0, -1, target]).abs() for text in without])
    for name, expected in (
        ("saliency", gradient[0].abs()), ("attention", weights.permute(2, 0, 1)), ("occlusion", losses)
    ):  # fmt: skip
        torch.testing.assert_close(looked[name], expected, rtol=0, atol=TOLERANCE)
        assert (expected[0] - expected[1]).abs().max() > DIFFERENT


def test_the_example_of_the_readme(folders: dict, models: dict, ids: torch.Tensor, tmp_path: Path) -> None:
    (block,) = read_blocks((ROOT / "hf_gpt_scratch/interpretability/README.md").read_text(encoding="utf-8"))
    assert len(block.text.splitlines()) <= 12
    (tmp_path / "runs" / "gpt-scratch").mkdir(parents=True)
    (tmp_path / "runs" / "gpt-scratch" / "model").symlink_to(folders["gpt2"])
    printed = run(TRANSFORMER_LENS, tmp_path, "python", "-c", block.text, python_path=ROOT).splitlines()
    tokenizer, model = build_tokenizer(), models["gpt2"]
    text = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], dim=1)
    seen = by_plain_hooks(model, text)
    with torch.no_grad(), ablated(model.model.layers[0].mlp):
        without = model(text).logits
    expected = {f"layer {layer}": seen[f"lens {layer}"] for layer in range(3)} | {"without the first MLP": without}
    said = [f"{name}: {tokenizer.decode(logits[0, -1].argmax())!r}" for name, logits in expected.items()]
    assert printed == said
    assert len(set(said)) > 2

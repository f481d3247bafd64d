"""What the tests of the model share: weights that leave nothing at zero or one, and transformers' GPT-2 as the peer.

The mapping from our weights to GPT-2's is written here a second time on purpose: the tests of the model must not lean
on the converter of the package.
"""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchForCausalLM


@pytest.fixture
def continuous_batching() -> ModuleType:
    """The library's processors for it. Before they were there, its own GPT-2 failed at it on a CPU or ignored them."""
    place = "transformers.generation.continuous_batching.cb_logits_processors"
    library = pytest.importorskip(place, reason=f"transformers {transformers.__version__} is before 5.6")
    if "page_size" not in inspect.signature(transformers.ContinuousBatchingConfig).parameters:
        pytest.skip(f"transformers {transformers.__version__} calls the size of a page otherwise")
    return library


def to_gpt2_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn our parameters, or their gradients, into those of GPT2LMHeadModel: Conv1D is [in, out], q k v are one."""
    plain = {
        "model.embed_tokens.weight": "transformer.wte.weight",
        "model.embed_positions.weight": "transformer.wpe.weight",
        "model.norm.weight": "transformer.ln_f.weight",
        "model.norm.bias": "transformer.ln_f.bias",
        "lm_head.weight": "lm_head.weight",
    }
    mapped = {theirs: tensors[ours] for ours, theirs in plain.items() if ours in tensors}
    num_layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("model.layers."))
    for index in range(num_layers):
        ours, theirs = f"model.layers.{index}", f"transformer.h.{index}"
        for kind in ("weight", "bias"):
            mapped[f"{theirs}.ln_1.{kind}"] = tensors[f"{ours}.input_layernorm.{kind}"]
            mapped[f"{theirs}.ln_2.{kind}"] = tensors[f"{ours}.post_attention_layernorm.{kind}"]
        for linear, conv in (
            ("self_attn.o_proj", "attn.c_proj"),
            ("mlp.up_proj", "mlp.c_fc"),
            ("mlp.down_proj", "mlp.c_proj"),
        ):
            mapped[f"{theirs}.{conv}.weight"] = tensors[f"{ours}.{linear}.weight"].T
            mapped[f"{theirs}.{conv}.bias"] = tensors[f"{ours}.{linear}.bias"]
        qkv = [f"{ours}.self_attn.{name}_proj" for name in "qkv"]
        mapped[f"{theirs}.attn.c_attn.weight"] = torch.cat([tensors[f"{name}.weight"].T for name in qkv], dim=1)
        if f"{qkv[0]}.bias" in tensors:
            mapped[f"{theirs}.attn.c_attn.bias"] = torch.cat([tensors[f"{name}.bias"] for name in qkv])
    return mapped


def build_stock_gpt2(model: GPTScratchForCausalLM) -> GPT2LMHeadModel:
    """Build transformers' GPT-2 with eager attention, no dropout and the weights of `model`."""
    config = model.config
    stock = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            activation_function="gelu_new",
            layer_norm_epsilon=config.layer_norm_eps,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            tie_word_embeddings=config.tie_word_embeddings,
            attn_implementation="eager",
        )
    )
    # GPT-2 always has a bias on q, k and v.
    missing_biases = {name: torch.zeros_like(bias) for name, bias in stock.named_parameters() if "c_attn.bias" in name}
    stock.load_state_dict({**missing_biases, **to_gpt2_names(model.state_dict())}, strict=True)
    return stock.eval()


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run a test without recording for the backward pass."""
    with torch.no_grad():
        yield


@pytest.fixture
def stock_gpt2() -> Callable[[GPTScratchForCausalLM], GPT2LMHeadModel]:
    """Return the function that builds the peer."""
    return build_stock_gpt2


@pytest.fixture
def gpt2_names() -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return the function that maps our names and shapes to the peer's."""
    return to_gpt2_names


@pytest.fixture
def input_ids() -> torch.Tensor:
    """Token ids [3, 12] without the padding id 0."""
    return torch.randint(1, 101, (3, 12), generator=torch.Generator().manual_seed(1))

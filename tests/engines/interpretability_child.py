"""Asks a tool for a look inside an exported folder, and writes the tensors that it gives.

    python interpretability_child.py TOOL FOLDER REPORT IDS...

TOOL is a function of this file; with other tools than TransformerLens, hf_gpt_scratch cannot be imported here. REPORT
is a safetensors file, whose metadata are the texts that the tool gave. IDS are the tokens of one text.
"""

import importlib.util
import sys
from typing import Any

import torch
from safetensors.torch import save_file


NEW = 12  # tokens to generate
ABLATED = 1  # the layer whose MLP is set to zero
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_E", "W_pos", "W_U", "b_Q", "b_in", "b_U")

Found = dict[str, torch.Tensor | str]


def zero(value: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.zeros_like(value)


def transformer_lens(folder: str, ids: torch.Tensor) -> Found:
    from hf_gpt_scratch.interpretability.transformer_lens import boot_transformers

    bridge = boot_transformers(folder, device="cpu")
    logits, cache = bridge.run_with_cache(ids)
    found: Found = {"logits": logits, "norm": cache["ln_final.hook_out"]}
    for layer in range(bridge.cfg.n_layers):
        block = f"blocks.{layer}"
        found[f"layer {layer}"] = cache[f"{block}.hook_resid_post"]
        found[f"attention {layer}"] = cache[f"{block}.hook_attn_out"]
        found[f"mlp {layer}"] = cache[f"{block}.hook_mlp_out"]
        found[f"weights {layer}"] = cache[f"{block}.attn.hook_pattern"]
        found[f"lens {layer}"] = bridge.unembed(bridge.ln_final(cache[f"{block}.hook_resid_post"]))
    found["ablated"] = bridge.run_with_hooks(ids, fwd_hooks=[(f"blocks.{ABLATED}.hook_mlp_out", zero)])
    for name, is_cached in (("generated", True), ("generated without cache", False)):
        found[name] = bridge.generate(
            ids, max_new_tokens=NEW, do_sample=False, use_past_kv_cache=is_cached, stop_at_eos=False,
            return_type="tokens", verbose=False,
        )  # fmt: skip
    return found


def folded_weights(folder: str, ids: torch.Tensor) -> Found:
    """Of TransformerLens: normalization folded into the weights, as most of its users work."""
    from hf_gpt_scratch.interpretability.transformer_lens import boot_transformers

    bridge = boot_transformers(folder, device="cpu")
    bridge.enable_compatibility_mode()
    found: Found = {name: getattr(bridge, name) for name in WEIGHTS if getattr(bridge, name, None) is not None}
    return found | {"architecture": bridge.cfg.architecture, "log-probabilities": bridge(ids).log_softmax(-1)}


def nnsight(folder: str, ids: torch.Tensor) -> Found:
    from nnsight import TransformersModel

    model = TransformersModel(folder, task="text-generation", trust_remote_code=True, device_map="cpu", dispatch=True)
    found: Found = {}
    with torch.no_grad():
        for layer in range(model.config.num_hidden_layers):
            with model.trace(ids):
                attention = model.model.layers[layer].self_attn.output[0].save()
                mlp = model.model.layers[layer].mlp.output.save()
                hidden = model.model.layers[layer].output.save()
                lens = model.lm_head(model.model.norm(hidden)).save()
            found |= {f"attention {layer}": attention, f"mlp {layer}": mlp, f"layer {layer}": hidden}
            found[f"lens {layer}"] = lens
        with model.trace(ids):
            norm = model.model.norm.output.save()
            logits = model.output.logits.save()
        with model.trace(ids):
            model.model.layers[ABLATED].mlp.output[:] = 0
            ablated = model.output.logits.save()
        with model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None) as tracer:
            generated = tracer.result.save()
        with model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None) as tracer:
            for _ in tracer.iter[:NEW]:
                model.model.layers[ABLATED].mlp.output[:] = 0
            generated_ablated = tracer.result.save()
    found |= {"norm": norm, "logits": logits, "ablated": ablated}
    return found | {"generated": generated, "generated ablated": generated_ablated}


def load(folder: str, **options: Any) -> tuple[Any, Any]:
    """The model and the tokenizer of the folder, as a user of transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options), tokenizer


def captum(folder: str, ids: torch.Tensor) -> Found:
    from captum.attr import FeatureAblation, LayerActivation, LayerFeatureAblation, LLMAttribution, TextTokenInput

    model, tokenizer = load(folder)
    found: Found = {}
    for layer, block in enumerate(model.model.layers):
        # captum clones all that a module returns, and of the attention that has None where the weights would be.
        for name, module in (("layer", block), ("attention", block.self_attn.o_proj), ("mlp", block.mlp)):
            found[f"{name} {layer}"] = LayerActivation(model, module).attribute(ids)
    best = int(model(ids).logits[0, -1].argmax())
    ablation = LayerFeatureAblation(lambda ids: model(ids).logits[:, -1], model.model.layers[ABLATED].mlp)
    one_feature = torch.zeros(1, ids.shape[1], model.config.hidden_size, dtype=torch.long)
    found["loss of logit"] = ablation.attribute(ids, target=best, layer_mask=one_feature)[0, 0, 0]
    prompt = TextTokenInput(tokenizer.decode(ids[0, :-2]), tokenizer, baselines=0)
    attribution, target = LLMAttribution(FeatureAblation(model), tokenizer), tokenizer.decode(ids[0, -2:])
    for name, options in (("by token", {}), ("at once", {"forward_in_tokens": False})):
        found[name] = attribution.attribute(prompt, target=target, use_cached_outputs=False, **options).token_attr
    try:
        found["with cache"] = attribution.attribute(prompt, target=target).token_attr
    except ValueError as error:
        found["with cache"] = str(error)
    return found


def inseq(folder: str, ids: torch.Tensor) -> Found:
    """Attributions of the last token; to its logit, as a probability of drawn weights is too small to compare."""
    from inseq import load_model

    model, tokenizer = load(folder, attn_implementation="eager")
    prompt, text = tokenizer.decode(ids[0, :-1]), tokenizer.decode(ids[0])
    found: Found = {}
    for method, options in (
        ("saliency", {"attributed_fn": "logit"}),
        ("occlusion", {"attributed_fn": "logit"}),
        ("attention", {}),
    ):
        tool = load_model(model, method, tokenizer=tokenizer)
        (explained,) = tool.attribute(prompt, text, show_progress=False, **options).sequence_attributions
        found[method] = explained.target_attributions[: ids.shape[1] - 1, 0]
    return found


def main() -> None:
    tool, folder, report, *ids = sys.argv[1:]
    found = globals()[tool](folder, torch.tensor([[int(one) for one in ids]]))
    found["package"] = str(importlib.util.find_spec("hf_gpt_scratch") is not None)
    tensors = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in found.items()
        if isinstance(value, torch.Tensor)
    }
    save_file(tensors, report, metadata={name: value for name, value in found.items() if isinstance(value, str)})


if __name__ == "__main__":
    main()

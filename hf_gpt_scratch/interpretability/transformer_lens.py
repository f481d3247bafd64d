"""Open a model in TransformerLens, and tell it where the parts lie that it knows by names of its own."""

import os
from typing import Any

import hf_gpt_scratch.registration  # noqa: F401  makes the folder load without its own code


try:
    from transformer_lens import model_bridge
    from transformer_lens.factories import architecture_adapter_factory
    from transformer_lens.model_bridge import generalized_components as parts
except ImportError as error:
    raise ImportError("this needs TransformerLens: pip install 'transformer-lens>=4.3'") from error

ARCHITECTURE = "GPTScratchForCausalLM"


class GPTScratchAdapter(model_bridge.ArchitectureAdapter):
    """The parts of a `GPTScratchForCausalLM`, under the names of TransformerLens."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.weight_processing_conversions = self._qkvo_weight_conversions(include_biases=True)

        def norm(name: str) -> parts.NormalizationBridge:
            return parts.NormalizationBridge(name=name, config=cfg, use_native_layernorm_autograd=True)

        def linears(**names: str) -> dict[str, parts.LinearBridge]:
            return {theirs: parts.LinearBridge(name=f"{ours}_proj") for theirs, ours in names.items()}

        block = {
            "ln1": norm("input_layernorm"),
            "attn": parts.AttentionBridge(
                name="self_attn", config=cfg, submodules=linears(q="q", k="k", v="v", o="o")
            ),
            "ln2": norm("post_attention_layernorm"),
            "mlp": parts.MLPBridge(name="mlp", config=cfg, submodules=linears(**{"in": "up", "out": "down"})),
        }
        self.component_mapping = {
            "embed": parts.EmbeddingBridge(name="model.embed_tokens"),
            "pos_embed": parts.PosEmbedBridge(name="model.embed_positions"),
            "blocks": parts.BlockBridge(name="model.layers", config=cfg, submodules=block),
            "ln_final": norm("model.norm"),
            "unembed": parts.UnembeddingBridge(name="lm_head", config=cfg),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Take over the kind of normalization, which TransformerLens does not read from our configuration."""
        self.cfg.normalization_type = {"layernorm": "LN", "rmsnorm": "RMS"}[hf_model.config.norm_type]


def boot_transformers(model: str | os.PathLike, **options: Any) -> model_bridge.TransformerBridge:
    """Load a folder, or a repository of the Hub, as `TransformerBridge.boot_transformers` loads a model that it knows.

    No code of the folder runs. The bridge computes the model's own logits, with a hook at each activation; `options`
    are those of TransformerLens, as `device` and `dtype`.
    """
    # Version 4.3 looks for the architecture in the first table, and for its adapter in a copy of it: neither its
    # `register_adapter` nor an entry point reaches both.
    architecture_adapter_factory.SUPPORTED_ARCHITECTURES[ARCHITECTURE] = GPTScratchAdapter
    architecture_adapter_factory.ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, GPTScratchAdapter)
    return model_bridge.TransformerBridge.boot_transformers(os.fspath(model), **options)

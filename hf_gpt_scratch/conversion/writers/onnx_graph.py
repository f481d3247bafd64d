"""GPT-2 with a cache as an ONNX graph, from the tensors of transformers' layout; needs the package onnx.

Names and shapes of inputs and outputs are those that Optimum gave them and transformers.js looks for. B texts of T new
tokens stand behind P cached ones; V tokens, H heads of D numbers:

    input_ids, position_ids        int64 [B, T]
    attention_mask                 int64 [B, P + T], 0 for padding
    num_logits_to_keep             int64 [], how many of the last T tokens get logits, 0 for all
    past_key_values.{i}.key/value  float32 [B, H, P, D]
    logits                         float32 [B, T or num_logits_to_keep, V]
    present.{i}.key/value          float32 [B, H, P + T, D]

transformers.js gives a dimension that is called batch_size the number of texts, and any other one zero for an empty
cache.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import hf_gpt_scratch
from hf_gpt_scratch.conversion.mapping import HEAD


OPSET, IR_VERSION = 17, 8  # the first opset with LayerNormalization
TOKENS, SLOTS = ["batch_size", "sequence_length"], ["batch_size", "total_sequence_length"]
END = np.iinfo(np.int64).max
MASKED = np.finfo(np.float32).min  # and not minus infinity: a token of padding sees nothing, which would be 0 / 0


class Graph:
    """Nodes in the order in which they are computed, and their constants; every value is known by its name."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._tensors = tensors

    def weight(self, name: str) -> str:
        """Take a tensor of the model into the graph, as float32."""
        values = np.ascontiguousarray(self._tensors[name], np.float32)
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """Take a number or a list into the graph."""
        name = f"constant.{np.dtype(dtype).name}.{value}"
        self.constants[name] = numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return that."""
        output = name or f"{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def size(self, value: str, axis: int) -> str:
        """Return the length of an axis, int64 []."""
        return self.add("Gather", self.add("Shape", value), self.constant(axis))

    def linear(self, x: str, module: str) -> str:
        """Multiply by a matrix [in, out] and add the bias."""
        return self.add("Add", self.add("MatMul", x, self.weight(f"{module}.weight")), self.weight(f"{module}.bias"))

    def layer_norm(self, x: str, module: str, eps: float) -> str:
        """Normalize the last axis, then apply gain and bias."""
        gain, bias = self.weight(f"{module}.weight"), self.weight(f"{module}.bias")
        return self.add("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps)

    def gelu(self, x: str) -> str:
        """Compute 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), GELU's tanh form."""
        cube = self.add("Mul", self.add("Pow", x, self.constant(3, np.float32)), self.constant(0.044715, np.float32))
        inner = self.add("Mul", self.add("Add", x, cube), self.constant(math.sqrt(2 / math.pi), np.float32))
        share = self.add("Add", self.add("Tanh", inner), self.constant(1, np.float32))
        return self.add("Mul", self.add("Mul", x, self.constant(0.5, np.float32)), share)

    def mask(self) -> str:
        """Return what is added to the scores, float32 [B, 1, T, P + T]: a token sees itself and what is before it."""
        total, step = self.size("attention_mask", 1), self.constant(1)
        slots = self.add("Range", self.constant(0), total, step)
        first = self.add("Sub", total, self.size("input_ids", 1))
        queries = self.add("Unsqueeze", self.add("Range", first, total, step), self.constant([1]))
        is_text = self.add("Cast", "attention_mask", to=TensorProto.BOOL)
        is_text = self.add("Unsqueeze", is_text, self.constant([1, 2]))
        is_seen = self.add("And", self.add("LessOrEqual", slots, queries), is_text)
        return self.add("Where", is_seen, self.constant(0, np.float32), self.constant(MASKED, np.float32))

    def attention(self, x: str, layer: int, mask: str, heads: int, head_width: int) -> str:
        """Attend to the cache and the new tokens, [B, T, C] -> [B, T, C], and give the longer cache out."""
        module = f"transformer.h.{layer}.attn"
        fused, split = self.linear(x, f"{module}.c_attn"), [f"{module}.{part}" for part in ("query", "key", "value")]
        self.nodes.append(helper.make_node("Split", [fused], split, f"{module}.split", axis=-1))
        shape = self.constant([0, 0, heads, head_width])  # 0 keeps the length that is there
        query, *new = (
            self.add("Transpose", self.add("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in split
        )  # [B, H, T, D]
        key, value = (
            self.add("Concat", f"past_key_values.{layer}.{part}", states, axis=2, name=f"present.{layer}.{part}")
            for part, states in zip(("key", "value"), new, strict=True)
        )
        query = self.add("Mul", query, self.constant(1 / math.sqrt(head_width), np.float32))
        scores = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        shares = self.add("Softmax", self.add("Add", scores, mask), axis=-1)
        joined = self.add("Transpose", self.add("MatMul", shares, value), perm=[0, 2, 1, 3])
        joined = self.add("Reshape", joined, self.constant([0, 0, heads * head_width]))
        return self.linear(joined, f"{module}.c_proj")

    def head(self, hidden: str, embedding: str, width: int, vocab_size: int) -> None:
        """Compute the logits of the last tokens with the embedding as it is stored, not a transposed copy."""
        start = self.add("Unsqueeze", self.add("Neg", "num_logits_to_keep"), self.constant([0]))
        kept = self.add("Slice", hidden, start, self.constant([END]), self.constant([1]))  # from -0 it is all
        rows = self.add("Gemm", self.add("Reshape", kept, self.constant([-1, width])), embedding, transB=1)
        texts = self.add("Slice", self.add("Shape", kept), self.constant([0]), self.constant([2]))
        shape = self.add("Concat", texts, self.constant([vocab_size]), axis=0)
        self.add("Reshape", rows, shape, name="logits")


def gpt2_model(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the model of these tensors, named and laid out as in transformers' GPT2LMHeadModel.

    `config` has the fields of GPTScratchConfig. Everything is float32.
    """
    layers, heads, width = (config[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    graph, eps = Graph(tensors), config["layer_norm_eps"]
    embedding = graph.weight("transformer.wte.weight")
    tokens = graph.add("Gather", embedding, "input_ids")
    # A runtime's error of an index out of bounds names the node.
    name = f"text_past_the_context_of_{config['max_position_embeddings']}_tokens"
    positions = graph.add("Gather", graph.weight("transformer.wpe.weight"), "position_ids", name=name)
    hidden = graph.add("Add", tokens, positions)
    mask = graph.mask()
    for layer in range(layers):
        block = f"transformer.h.{layer}"
        normed = graph.layer_norm(hidden, f"{block}.ln_1", eps)
        hidden = graph.add("Add", hidden, graph.attention(normed, layer, mask, heads, width // heads))
        normed = graph.layer_norm(hidden, f"{block}.ln_2", eps)
        inner = graph.gelu(graph.linear(normed, f"{block}.mlp.c_fc"))
        hidden = graph.add("Add", hidden, graph.linear(inner, f"{block}.mlp.c_proj"))
    hidden = graph.layer_norm(hidden, "transformer.ln_f", eps)
    graph.head(hidden, embedding if config["tie_word_embeddings"] else graph.weight(HEAD), width, config["vocab_size"])
    constants = list(graph.constants.values())
    return helper.make_model(
        helper.make_graph(graph.nodes, "gpt2", *inputs_and_outputs(config), initializer=constants),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="hf_gpt_scratch", producer_version=hf_gpt_scratch.__version__,
    )  # fmt: skip


def give_head_its_own_matrix(model: onnx.ModelProto) -> None:
    """Put a transposed copy of the embedding at the head, for a quantizer.

    That of ONNX Runtime 1.23 transposes the embedding itself for the head, and so for the tokens too.
    """
    (head,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    (rows,) = [constant for constant in model.graph.initializer if constant.name == head.input[1]]
    name = f"{rows.name}_Transposed"
    columns = np.ascontiguousarray(numpy_helper.to_array(rows).T)
    if rows.name == HEAD:  # which nothing else needs
        model.graph.initializer.remove(rows)
    model.graph.initializer.append(numpy_helper.from_array(columns, name))
    head.CopyFrom(helper.make_node("MatMul", [head.input[0], name], [head.output[0]], head.name))


def inputs_and_outputs(config: Mapping[str, Any]) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Return the declarations of the inputs and of the outputs."""
    heads, width, layers = (config[key] for key in ("num_attention_heads", "hidden_size", "num_hidden_layers"))

    def cache(kind: str, length: str) -> list[onnx.ValueInfoProto]:
        shape = ["batch_size", heads, length, width // heads]
        names = [f"{kind}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]

    shapes = {"input_ids": TOKENS, "attention_mask": SLOTS, "position_ids": TOKENS, "num_logits_to_keep": []}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
    logits_shape = ["batch_size", "num_logits", config["vocab_size"]]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits_shape)
    past, present = cache("past_key_values", "past_sequence_length"), cache("present", "total_sequence_length")
    return inputs + past, [logits, *present]

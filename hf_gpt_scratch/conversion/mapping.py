"""Tables of which tensor of a GPT-2 checkpoint goes where in ours, and a plan that accounts for every tensor.

Every format is a table of rows, source name -> target names. `plan_moves` checks a table against the names and shapes
of a checkpoint: every source name is mapped or named as dropped, every target is filled exactly once, and every shape
is compared before a value is copied. All problems are reported together.

Sources of the names: src/model.py of openai/gpt-2, models/gpt2/modeling_gpt2.py of transformers, model.py of
karpathy/nanoGPT, and chapters 4 and 5 of the book "Build a Large Language Model (From Scratch)".
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from hf_gpt_scratch.conversion.readers.named_tensors import Shape
from hf_gpt_scratch.runtime.cli import name_some


class Layout(Enum):
    """The layout in which a source stores what we store as [out, in] matrices or [out] vectors."""

    LINEAR = "Linear"  # [n * out, in], or a vector [n * out]
    CONV1D = "Conv1D"  # [in, n * out]
    CONV1D_TF = "Conv1D of TensorFlow"  # [1, in, n * out]

    def join(self, target: Shape, count: int) -> Shape:
        """Return the source shape of `count` targets that each have the shape `target`."""
        joined = (count * target[0], *target[1:])
        if self is Layout.LINEAR:
            return joined
        return (1, *joined[::-1]) if self is Layout.CONV1D_TF else joined[::-1]


@dataclass(frozen=True)
class Row:
    """One source tensor: `{i}` in its name is the number of the layer, `{any}` is any text.

    With several targets it is split into equal parts in their order. Without a target it is known and dropped, and
    `reason` says why.
    """

    source: str
    targets: tuple[str, ...] = ()
    layout: Layout = Layout.LINEAR
    reason: str = ""

    def match(self, name: str) -> re.Match[str] | None:
        """Match a name; the group `i` is the layer, None in rows that are not of a layer."""
        return _compile(self.source).fullmatch(name)

    def for_layer(self, index: int | str) -> "Row":
        """Return the row with the names of one layer."""
        targets = tuple(target.replace("{i}", str(index)) for target in self.targets)
        return replace(self, source=self.source.replace("{i}", str(index)), targets=targets)


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint."""

    name: str
    title: str  # in a sentence
    rows: tuple[Row, ...]
    biases_optional: bool = False  # a model without any bias is filled up with zeros

    def source_of(self, target: str) -> str:
        """Return the source name of one of our tensors that is stored alone, "" if the format lacks it."""
        return next((row.source for row in self.rows if row.targets == (target,)), "")

    def find_row(self, name: str) -> Row | None:
        """Return the row of a canonical name, with the names of its layer."""
        for row in self.rows:
            if match := row.match(name):
                return row.for_layer(match["i"] or "")
        return None


@functools.cache
def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{i\}", r"(?P<i>0|[1-9][0-9]*)").replace(r"\{any\}", ".+")
    return re.compile(pattern if "(?P<i>" in pattern else f"(?P<i>){pattern}")


CAUSAL_MASK = "a causal mask, which our attention does not store"
LAYER = "model.layers.{i}."
EMBEDDING, POSITIONS, HEAD = "model.embed_tokens.weight", "model.embed_positions.weight", "lm_head.weight"
QKV = tuple(f"{LAYER}self_attn.{letter}_proj." for letter in "qkv")
LN_1, LN_2, LN_F = f"{LAYER}input_layernorm.", f"{LAYER}post_attention_layernorm.", "model.norm."
ATTENTION_OUT, MLP_IN, MLP_OUT = f"{LAYER}self_attn.o_proj.", f"{LAYER}mlp.up_proj.", f"{LAYER}mlp.down_proj."


def rows_of(
    modules: Mapping[str, str | Sequence[str]],
    parts: Sequence[str] = ("weight", "bias"),
    layout: Layout = Layout.LINEAR,
) -> tuple[Row, ...]:
    """Return the rows of the weights and biases of some modules: source module -> our module or modules."""
    return tuple(
        Row(
            source + part,
            tuple(target + ours for target in ([targets] if isinstance(targets, str) else targets)),
            layout if ours == "weight" else Layout.LINEAR,
        )
        for source, targets in modules.items()
        for part, ours in zip(parts, ("weight", "bias"), strict=True)
    )


def dropped_rows(reason: str, *names: str) -> tuple[Row, ...]:
    """Return rows of names that are known and not needed."""
    return tuple(Row(name, reason=reason) for name in names)


def gpt2_rows(matrix: Layout) -> tuple[Row, ...]:
    """Return the names of transformers' GPT-2, which nanoGPT shares; they differ in how matrices are stored."""
    layer = "transformer.h.{i}."
    return (
        Row("transformer.wte.weight", (EMBEDDING,)),
        Row("transformer.wpe.weight", (POSITIONS,)),
        *rows_of({f"{layer}ln_1.": LN_1, f"{layer}ln_2.": LN_2, "transformer.ln_f.": LN_F}),
        *rows_of({f"{layer}attn.c_attn.": QKV, f"{layer}attn.c_proj.": ATTENTION_OUT}, layout=matrix),
        *rows_of({f"{layer}mlp.c_fc.": MLP_IN, f"{layer}mlp.c_proj.": MLP_OUT}, layout=matrix),
        *dropped_rows(CAUSAL_MASK, f"{layer}attn.bias", f"{layer}attn.masked_bias"),
        Row(HEAD, (HEAD,)),
    )


# What torch.compile, DataParallel and Lightning put before the names.
PREFIXES = ("_orig_mod.", "module.", "model.")
# fmt: off
OPTIMIZER_NAMES = (
    "beta1_power", "beta2_power", "{any}/beta1_power", "{any}/beta2_power", "{any}/Adam", "{any}/Adam_1",
    "{any}/Adagrad", "{any}/Momentum", "{any}/RMSProp", "{any}/RMSProp_1", "{any}/adafactor_{any}", "optimizer/{any}",
)
# fmt: on

OPENAI = Format(
    "openai",
    "a checkpoint of OpenAI's GPT-2 code",
    (
        Row("model/wte", (EMBEDDING,)),
        Row("model/wpe", (POSITIONS,)),
        *rows_of({"model/h{i}/ln_1/": LN_1, "model/h{i}/ln_2/": LN_2, "model/ln_f/": LN_F}, "gb"),
        *rows_of({"model/h{i}/attn/c_attn/": QKV, "model/h{i}/attn/c_proj/": ATTENTION_OUT}, "wb", Layout.CONV1D_TF),
        *rows_of({"model/h{i}/mlp/c_fc/": MLP_IN, "model/h{i}/mlp/c_proj/": MLP_OUT}, "wb", Layout.CONV1D_TF),
        *dropped_rows("a counter of training steps", "global_step", "{any}/global_step"),
        *dropped_rows("a counter of saved checkpoints", "save_counter{any}"),
        *dropped_rows("TensorFlow's own record of objects", "_CHECKPOINTABLE_OBJECT_GRAPH"),
        *dropped_rows("state of the optimizer", *OPTIMIZER_NAMES),
    ),
)
GPT2 = Format("gpt2", "a checkpoint of transformers' GPT-2", gpt2_rows(Layout.CONV1D))
NANOGPT = Format("nanogpt", "a checkpoint of nanoGPT", gpt2_rows(Layout.LINEAR), biases_optional=True)
TUTORIAL_BLOCK = "trf_blocks.{i}."
TUTORIAL_ROWS = (
    Row("tok_emb.weight", (EMBEDDING,)),
    Row("pos_emb.weight", (POSITIONS,)),
    *rows_of(
        {f"{TUTORIAL_BLOCK}norm1.": LN_1, f"{TUTORIAL_BLOCK}norm2.": LN_2, "final_norm.": LN_F}, ("scale", "shift")
    ),
    *rows_of({f"{TUTORIAL_BLOCK}ff.layers.0.": MLP_IN, f"{TUTORIAL_BLOCK}ff.layers.2.": MLP_OUT}),
    *dropped_rows(CAUSAL_MASK, f"{TUTORIAL_BLOCK}att.mask"),
    Row("out_head.weight", (HEAD,)),
)
SEPARATE_ATTENTION = {
    f"{TUTORIAL_BLOCK}att.W_query.": QKV[0],
    f"{TUTORIAL_BLOCK}att.W_key.": QKV[1],
    f"{TUTORIAL_BLOCK}att.W_value.": QKV[2],
    f"{TUTORIAL_BLOCK}att.out_proj.": ATTENTION_OUT,
}
TUTORIAL = Format(
    "tutorial", "a checkpoint of the tutorial's GPTModel", (*TUTORIAL_ROWS, *rows_of(SEPARATE_ATTENTION))
)
# The faster attentions beside the tutorial have one projection for all three.
FUSED_ATTENTION = {f"{TUTORIAL_BLOCK}att.qkv.": QKV, f"{TUTORIAL_BLOCK}att.proj.": ATTENTION_OUT}
FUSED_TUTORIAL = replace(TUTORIAL, rows=(*TUTORIAL_ROWS, *rows_of(FUSED_ATTENTION)))
# Our own state dict, as torch.save writes it: the names stay.
STATE_DICT = Format(
    "gpt_scratch",
    "a state dict of our own model",
    (
        *(Row(name, (name,)) for name in (EMBEDDING, POSITIONS, HEAD)),
        *rows_of({module: module for module in (LN_1, *QKV, ATTENTION_OUT, LN_2, MLP_IN, MLP_OUT, LN_F)}),
    ),
)
FORMATS = {format_.name: format_ for format_ in (OPENAI, GPT2, NANOGPT, TUTORIAL, STATE_DICT)}


def canonical_names(format_: Format, names: Iterable[str]) -> dict[str, str]:
    """Map the names of a checkpoint to those of the table, without prefixes: {name there: name in the table}.

    The bare models, without a head, lack the `transformer.` or `model.` that the tables have.
    """
    canonical = {}
    for name in names:
        short = name
        while short.startswith(PREFIXES):
            short = short.partition(".")[2]
        if format_ is STATE_DICT and re.match(r"(embed_tokens|embed_positions|layers|norm)\.", short):
            short = f"model.{short}"
        if format_ in (GPT2, NANOGPT) and re.match(r"(wte|wpe|h|ln_f)\.", short):
            short = f"transformer.{short}"
        canonical[name] = short
    return canonical


def detect_format(shapes: Mapping[str, Shape], hint: str | None = None) -> Format:
    """Detect the format of a checkpoint from its names, unless its own settings say it: the `hint`."""
    if hint is not None:
        return FORMATS[hint]
    known = {
        format_.name: sum(format_.find_row(name) is not None for name in canonical_names(format_, shapes).values())
        for format_ in FORMATS.values()
    }
    best = max(known, key=lambda name: known[name])
    if not known[best]:
        kinds = "; ".join(format_.title for format_ in FORMATS.values())
        raise ValueError(f"these tensors are of no format that is known ({kinds}): {name_some(sorted(shapes))}")
    if best in ("gpt2", "nanogpt"):
        # nanoGPT's fused projection is [3C, C]; transformers, with the same names, has [C, 3C].
        fused = [shape for name, shape in shapes.items() if name.endswith("attn.c_attn.weight") and len(shape) == 2]
        return NANOGPT if sum(shape[0] == 3 * shape[1] for shape in fused) > len(fused) / 2 else GPT2
    if best == "tutorial" and any(name.endswith(".att.qkv.weight") for name in shapes):
        return FUSED_TUTORIAL
    return FORMATS[best]


def target_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return names and shapes of the tensors of our model in order of their use, without a tied head."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, Shape] = {
        EMBEDDING: (config["vocab_size"], width),
        POSITIONS: (config["max_position_embeddings"], width),
    }
    modules: dict[str, Shape] = {LN_1: (width,)} | dict.fromkeys((*QKV, ATTENTION_OUT), (width, width))
    modules |= {LN_2: (width,), MLP_IN: (inner, width), MLP_OUT: (width, inner)}
    for index in range(config["num_hidden_layers"]):
        for module, shape in modules.items():
            name = module.replace("{i}", str(index))
            shapes[f"{name}weight"] = shape
            if config["qkv_bias"] or module not in QKV:
                shapes[f"{name}bias"] = shape[:1]
    shapes |= {f"{LN_F}weight": (width,), f"{LN_F}bias": (width,)}
    if not config["tie_word_embeddings"]:
        shapes[HEAD] = (config["vocab_size"], width)
    return shapes


@dataclass
class MappingPlan:
    """The outcome for every tensor, source and target."""

    moves: list[Row]  # one for each source tensor, with its own name and those of its layer
    shapes: dict[str, Shape]  # of the targets
    dropped: dict[str, str] = field(default_factory=dict)  # source name -> reason
    zeros: list[str] = field(default_factory=list)  # targets that the source does not have


def plan_moves(
    format_: Format,
    shapes: Mapping[str, Shape],
    config: Mapping[str, Any],
    *,
    source_vocab_size: int | None = None,
    drop: Mapping[str, str] | None = None,
) -> MappingPlan:
    """Account for every tensor of a checkpoint of this format and these shapes.

    The config fixes the shapes of our tensors; of `source_vocab_size` rows of the embedding, those beyond its
    `vocab_size` are cut. `drop` are names in the table that are not needed, with the reason.
    """
    plan, num_layers = MappingPlan([], target_shapes(config)), config["num_hidden_layers"]
    whole = target_shapes({**config, "vocab_size": source_vocab_size or config["vocab_size"]})  # before the cut
    filled, problems = defaultdict[str, list[str]](list), []  # target -> its sources; what does not fit
    for name, canonical in canonical_names(format_, shapes).items():
        row = format_.find_row(canonical)
        if row is None:
            problems.append(f"{name} {list(shapes[name])} is unknown")
        elif reason := row.reason or (drop or {}).get(canonical):
            plan.dropped[name] = reason
        elif row.targets[0] not in plan.shapes:
            problems.append(f"{name} {list(shapes[name])} has no place in a model of {num_layers} layers")
        else:
            for target in row.targets:
                filled[target].append(name)
            expected = row.layout.join(whole[row.targets[0]], len(row.targets))
            problems += _compare_shapes(name, shapes[name], row.layout, expected)
            plan.moves.append(replace(row, source=name))
    missing = [target for target in plan.shapes if target not in filled]
    if format_.biases_optional and not any(target.endswith(".bias") for target in filled):
        plan.zeros = [target for target in missing if target.endswith(".bias")]
    problems += [f"{' and '.join(names)} are both {target}" for target, names in filled.items() if len(names) > 1]
    problems += _name_absent(format_, [target for target in missing if target not in plan.zeros], num_layers)
    if problems:
        raise ValueError(f"this looks like {format_.title}, but {name_some(problems, '; ')}")
    order = list(plan.shapes)
    plan.moves.sort(key=lambda move: order.index(move.targets[0]))
    return plan


def _name_absent(format_: Format, targets: list[str], num_layers: int) -> list[str]:
    """Say which source tensors are missing, for the targets that nothing fills."""
    rows = [row.for_layer(index) for row in format_.rows for index in range(num_layers)]
    sources = {target: row.source for row in rows for target in row.targets}
    return [f"{source} is missing" for source in dict.fromkeys(sources.get(target, target) for target in targets)]


def _compare_shapes(name: str, shape: Shape, layout: Layout, expected: Shape) -> list[str]:
    """Say what is wrong with a shape, and recognize a matrix that is stored transposed."""
    if shape == expected:
        return []
    problem = f"{name} is {list(shape)}, not {list(expected)}"
    if len(expected) > 1 and shape[-2:] == expected[-2:][::-1]:
        other = Layout.CONV1D if layout is Layout.LINEAR else Layout.LINEAR
        problem += f" (this looks transposed: {other.value} layout)"
    return [problem]

"""Which tensor of a GPT-2 checkpoint goes where in ours: tables, and an account in which nothing is lost.

Every format is a table of rows, source name -> target names. `plan_moves` holds a table against the names and shapes
of a checkpoint: every source name is mapped or named as dropped, every target is filled exactly once, and every shape
is compared before a value is copied. All problems are reported together.

Sources of the names: src/model.py of openai/gpt-2, models/gpt2/modeling_gpt2.py of transformers, model.py of
karpathy/nanoGPT, and chapters 4 and 5 of the book "Build a Large Language Model (From Scratch)".
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


Shape = tuple[int, ...]

MAX_PROBLEMS_NAMED = 8


class Layout(Enum):
    """How a source stores what we store as one or several [out, in] matrices or [out] vectors."""

    LINEAR = "Linear"  # [n * out, in], or a vector [n * out]
    CONV1D = "Conv1D"  # [in, n * out]
    CONV1D_TF = "Conv1D of TensorFlow"  # [1, in, n * out]

    def join(self, target: Shape, count: int) -> Shape:
        """The source shape of `count` targets that each have the shape `target`."""
        joined = (count * target[0], *target[1:])
        if self is Layout.LINEAR:
            return joined
        return (1, *joined[::-1]) if self is Layout.CONV1D_TF else joined[::-1]


@dataclass(frozen=True)
class Row:
    """One source tensor: `{i}` in its name is the number of the layer, `{any}` is any text.

    With several targets it is cut into equal parts in their order. Without a target it is known and dropped, and
    `reason` says why.
    """

    source: str
    targets: tuple[str, ...] = ()
    layout: Layout = Layout.LINEAR
    reason: str = ""

    def match(self, name: str) -> re.Match[str] | None:
        """Match a name; the group `i` is the layer, None in rows that are not of a layer."""
        return _compile(self.source).fullmatch(name)

    def for_layer(self, index: int | str) -> tuple[str, tuple[str, ...]]:
        """The source name and the target names of one layer."""
        return (
            self.source.replace("{i}", str(index)),
            tuple(target.replace("{i}", str(index)) for target in self.targets),
        )


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint.

    Args:
        name: short name, for the report.
        title: what to call it in a sentence.
        rows: the table.
        head: source name of the language-model head; "" if the format has none.
        prefixes: what may stand before every name, such as the mark of torch.compile.
        biases_optional: whether a model without any bias is filled up with zeros.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    head: str = ""
    prefixes: tuple[str, ...] = ()
    biases_optional: bool = False


@functools.cache
def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{i\}", r"(?P<i>0|[1-9][0-9]*)").replace(r"\{any\}", ".+")
    return re.compile(pattern if "(?P<i>" in pattern else f"(?P<i>){pattern}")


LAYER = "model.layers.{i}."
QKV_WEIGHTS = tuple(f"{LAYER}self_attn.{letter}_proj.weight" for letter in "qkv")
QKV_BIASES = tuple(f"{LAYER}self_attn.{letter}_proj.bias" for letter in "qkv")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def gpt2_rows(prefix: str, matrix: Layout) -> tuple[Row, ...]:
    """Names of transformers' GPT-2, which nanoGPT shares; they differ in how matrices are stored."""
    layer = prefix + "h.{i}."
    mask = "a causal mask, which our attention does not store"
    return (
        Row(f"{prefix}wte.weight", (EMBEDDING,)),
        Row(f"{prefix}wpe.weight", ("model.embed_positions.weight",)),
        Row(f"{layer}ln_1.weight", (f"{LAYER}input_layernorm.weight",)),
        Row(f"{layer}ln_1.bias", (f"{LAYER}input_layernorm.bias",)),
        Row(f"{layer}attn.c_attn.weight", QKV_WEIGHTS, matrix),
        Row(f"{layer}attn.c_attn.bias", QKV_BIASES),
        Row(f"{layer}attn.c_proj.weight", (f"{LAYER}self_attn.o_proj.weight",), matrix),
        Row(f"{layer}attn.c_proj.bias", (f"{LAYER}self_attn.o_proj.bias",)),
        Row(f"{layer}attn.bias", reason=mask),
        Row(f"{layer}attn.masked_bias", reason=mask),
        Row(f"{layer}ln_2.weight", (f"{LAYER}post_attention_layernorm.weight",)),
        Row(f"{layer}ln_2.bias", (f"{LAYER}post_attention_layernorm.bias",)),
        Row(f"{layer}mlp.c_fc.weight", (f"{LAYER}mlp.up_proj.weight",), matrix),
        Row(f"{layer}mlp.c_fc.bias", (f"{LAYER}mlp.up_proj.bias",)),
        Row(f"{layer}mlp.c_proj.weight", (f"{LAYER}mlp.down_proj.weight",), matrix),
        Row(f"{layer}mlp.c_proj.bias", (f"{LAYER}mlp.down_proj.bias",)),
        Row(f"{prefix}ln_f.weight", ("model.norm.weight",)),
        Row(f"{prefix}ln_f.bias", ("model.norm.bias",)),
    )


HEAD_ROW = Row(HEAD, (HEAD,))
# What torch.compile, DataParallel and Lightning put before the names.
PREFIXES = ("_orig_mod.", "module.", "model.")
OPTIMIZER = "state of the optimizer"

OPENAI = Format(
    "openai",
    "a checkpoint of OpenAI's GPT-2 code",
    (
        Row("model/wte", (EMBEDDING,)),
        Row("model/wpe", ("model.embed_positions.weight",)),
        Row("model/h{i}/ln_1/g", (f"{LAYER}input_layernorm.weight",)),
        Row("model/h{i}/ln_1/b", (f"{LAYER}input_layernorm.bias",)),
        Row("model/h{i}/attn/c_attn/w", QKV_WEIGHTS, Layout.CONV1D_TF),
        Row("model/h{i}/attn/c_attn/b", QKV_BIASES),
        Row("model/h{i}/attn/c_proj/w", (f"{LAYER}self_attn.o_proj.weight",), Layout.CONV1D_TF),
        Row("model/h{i}/attn/c_proj/b", (f"{LAYER}self_attn.o_proj.bias",)),
        Row("model/h{i}/ln_2/g", (f"{LAYER}post_attention_layernorm.weight",)),
        Row("model/h{i}/ln_2/b", (f"{LAYER}post_attention_layernorm.bias",)),
        Row("model/h{i}/mlp/c_fc/w", (f"{LAYER}mlp.up_proj.weight",), Layout.CONV1D_TF),
        Row("model/h{i}/mlp/c_fc/b", (f"{LAYER}mlp.up_proj.bias",)),
        Row("model/h{i}/mlp/c_proj/w", (f"{LAYER}mlp.down_proj.weight",), Layout.CONV1D_TF),
        Row("model/h{i}/mlp/c_proj/b", (f"{LAYER}mlp.down_proj.bias",)),
        Row("model/ln_f/g", ("model.norm.weight",)),
        Row("model/ln_f/b", ("model.norm.bias",)),
        Row("global_step", reason="a counter of training steps"),
        Row("{any}/global_step", reason="a counter of training steps"),
        Row("save_counter{any}", reason="a counter of saved checkpoints"),
        Row("_CHECKPOINTABLE_OBJECT_GRAPH", reason="TensorFlow's own record of objects"),
        Row("beta1_power", reason=OPTIMIZER),
        Row("beta2_power", reason=OPTIMIZER),
        Row("{any}/beta1_power", reason=OPTIMIZER),
        Row("{any}/beta2_power", reason=OPTIMIZER),
        Row("{any}/Adam", reason=OPTIMIZER),
        Row("{any}/Adam_1", reason=OPTIMIZER),
        Row("{any}/Adagrad", reason=OPTIMIZER),
        Row("{any}/Momentum", reason=OPTIMIZER),
        Row("{any}/RMSProp", reason=OPTIMIZER),
        Row("{any}/RMSProp_1", reason=OPTIMIZER),
        Row("{any}/adafactor_{any}", reason=OPTIMIZER),
        Row("optimizer/{any}", reason=OPTIMIZER),
    ),
)
GPT2 = Format(
    "gpt2",
    "a checkpoint of transformers' GPT-2",
    (*gpt2_rows("transformer.", Layout.CONV1D), HEAD_ROW),
    head=HEAD,
    prefixes=PREFIXES,
)
NANOGPT = Format(
    "nanogpt",
    "a checkpoint of nanoGPT",
    (*gpt2_rows("transformer.", Layout.LINEAR), HEAD_ROW),
    head=HEAD,
    prefixes=PREFIXES,
    biases_optional=True,
)
TUTORIAL = Format(
    "tutorial",
    "a checkpoint of the tutorial's GPTModel",
    (
        Row("tok_emb.weight", (EMBEDDING,)),
        Row("pos_emb.weight", ("model.embed_positions.weight",)),
        Row("trf_blocks.{i}.norm1.scale", (f"{LAYER}input_layernorm.weight",)),
        Row("trf_blocks.{i}.norm1.shift", (f"{LAYER}input_layernorm.bias",)),
        Row("trf_blocks.{i}.att.W_query.weight", QKV_WEIGHTS[:1]),
        Row("trf_blocks.{i}.att.W_query.bias", QKV_BIASES[:1]),
        Row("trf_blocks.{i}.att.W_key.weight", QKV_WEIGHTS[1:2]),
        Row("trf_blocks.{i}.att.W_key.bias", QKV_BIASES[1:2]),
        Row("trf_blocks.{i}.att.W_value.weight", QKV_WEIGHTS[2:]),
        Row("trf_blocks.{i}.att.W_value.bias", QKV_BIASES[2:]),
        Row("trf_blocks.{i}.att.out_proj.weight", (f"{LAYER}self_attn.o_proj.weight",)),
        Row("trf_blocks.{i}.att.out_proj.bias", (f"{LAYER}self_attn.o_proj.bias",)),
        Row("trf_blocks.{i}.att.mask", reason="a causal mask, which our attention does not store"),
        Row("trf_blocks.{i}.norm2.scale", (f"{LAYER}post_attention_layernorm.weight",)),
        Row("trf_blocks.{i}.norm2.shift", (f"{LAYER}post_attention_layernorm.bias",)),
        Row("trf_blocks.{i}.ff.layers.0.weight", (f"{LAYER}mlp.up_proj.weight",)),
        Row("trf_blocks.{i}.ff.layers.0.bias", (f"{LAYER}mlp.up_proj.bias",)),
        Row("trf_blocks.{i}.ff.layers.2.weight", (f"{LAYER}mlp.down_proj.weight",)),
        Row("trf_blocks.{i}.ff.layers.2.bias", (f"{LAYER}mlp.down_proj.bias",)),
        Row("final_norm.scale", ("model.norm.weight",)),
        Row("final_norm.shift", ("model.norm.bias",)),
        Row("out_head.weight", (HEAD,)),
    ),
    head="out_head.weight",
    prefixes=PREFIXES,
)
# The faster attentions beside the tutorial have one projection for all three.
FUSED_TUTORIAL = replace(
    TUTORIAL,
    rows=(
        *(row for row in TUTORIAL.rows if ".att.W_" not in row.source and ".att.out_proj." not in row.source),
        Row("trf_blocks.{i}.att.qkv.weight", QKV_WEIGHTS),
        Row("trf_blocks.{i}.att.qkv.bias", QKV_BIASES),
        Row("trf_blocks.{i}.att.proj.weight", (f"{LAYER}self_attn.o_proj.weight",)),
        Row("trf_blocks.{i}.att.proj.bias", (f"{LAYER}self_attn.o_proj.bias",)),
    ),
)
# A state dict of ours, as torch.save writes it: the names stay.
STATE_DICT = Format(
    "gpt_scratch",
    "a state dict of our own model",
    tuple(
        Row(name, (name,))
        for name in (EMBEDDING, "model.embed_positions.weight", *QKV_WEIGHTS, *QKV_BIASES, HEAD)
        + tuple(
            f"{LAYER}{part}.{kind}"
            for part in (
                "input_layernorm",
                "self_attn.o_proj",
                "post_attention_layernorm",
                "mlp.up_proj",
                "mlp.down_proj",
            )
            for kind in ("weight", "bias")
        )
        + ("model.norm.weight", "model.norm.bias")
    ),
    head=HEAD,
    prefixes=PREFIXES,
)
FORMATS = {format_.name: format_ for format_ in (OPENAI, GPT2, NANOGPT, TUTORIAL, STATE_DICT)}


def canonical_names(format_: Format, names: Iterable[str]) -> dict[str, str]:
    """Map the names of a checkpoint to those of the table, without prefixes: {name there: name in the table}.

    transformers' GPT2Model has no `transformer.` before its names and GPT2LMHeadModel has; the table has. So it is
    with `model.` of ours.
    """
    canonical = {}
    for name in names:
        short = name
        while short.startswith(format_.prefixes):
            short = short.partition(".")[2]
        if format_ is STATE_DICT and re.match(r"(embed_tokens|embed_positions|layers|norm)\.", short):
            short = f"model.{short}"
        if format_ in (GPT2, NANOGPT) and re.match(r"(wte|wpe|h|ln_f)\.", short):
            short = f"transformer.{short}"
        canonical[name] = short
    return canonical


def detect_format(shapes: Mapping[str, Shape], hint: str | None = None) -> Format:
    """Tell the format of a checkpoint from its names; `hint` is what its own settings say.

    Raises:
        ValueError: no table knows any of the names.
    """
    if hint is not None:
        return FORMATS[hint]
    known = {
        format_.name: sum(
            any(row.match(name) for row in format_.rows) for name in canonical_names(format_, shapes).values()
        )
        for format_ in FORMATS.values()
    }
    best = max(known, key=known.get)
    if not known[best]:
        kinds = "; ".join(format_.title for format_ in FORMATS.values())
        raise ValueError(f"these tensors are of no format that is known ({kinds}): {name_some(sorted(shapes))}")
    if best in ("gpt2", "nanogpt"):
        return NANOGPT if _has_linear_layout(shapes) else GPT2
    if best == "tutorial" and any(name.endswith(".att.qkv.weight") for name in shapes):
        return FUSED_TUTORIAL
    return FORMATS[best]


def _has_linear_layout(shapes: Mapping[str, Shape]) -> bool:
    """NanoGPT and transformers share their names; the fused projection shows which it is: [3C, C] or [C, 3C]."""
    fused = [shape for name, shape in shapes.items() if name.endswith("attn.c_attn.weight") and len(shape) == 2]
    linear = sum(shape[0] == 3 * shape[1] for shape in fused)
    return linear > len(fused) / 2


def target_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of the tensors of our model, in the order in which they are used; a tied head is none."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    vector, square = (width,), (width, width)
    shapes: dict[str, Shape] = {
        EMBEDDING: (config["vocab_size"], width),
        "model.embed_positions.weight": (config["max_position_embeddings"], width),
    }
    for index in range(config["num_hidden_layers"]):
        layer = LAYER.replace("{i}", str(index))
        shapes |= {f"{layer}input_layernorm.{kind}": vector for kind in ("weight", "bias")}
        shapes |= {f"{layer}self_attn.{letter}_proj.weight": square for letter in "qkv"}
        if config["qkv_bias"]:
            shapes |= {f"{layer}self_attn.{letter}_proj.bias": vector for letter in "qkv"}
        shapes |= {f"{layer}self_attn.o_proj.weight": square, f"{layer}self_attn.o_proj.bias": vector}
        shapes |= {f"{layer}post_attention_layernorm.{kind}": vector for kind in ("weight", "bias")}
        shapes |= {f"{layer}mlp.up_proj.weight": (inner, width), f"{layer}mlp.up_proj.bias": (inner,)}
        shapes |= {f"{layer}mlp.down_proj.weight": (width, inner), f"{layer}mlp.down_proj.bias": vector}
    shapes |= {"model.norm.weight": vector, "model.norm.bias": vector}
    if not config["tie_word_embeddings"]:
        shapes[HEAD] = (config["vocab_size"], width)
    return shapes


@dataclass(frozen=True)
class Move:
    """One source tensor on its way; each part gets as many rows as its target has."""

    source: str
    targets: tuple[str, ...]
    layout: Layout


@dataclass
class Plan:
    """What becomes of every tensor, source and target."""

    moves: list[Move]
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
) -> Plan:
    """Account for every tensor.

    Args:
        format_: the table.
        shapes: names and shapes of the source.
        config: fields of GPTScratchConfig that fix the shapes of our tensors.
        source_vocab_size: rows of the source's embedding; those beyond `vocab_size` of the config are cut.
        drop: names in the table that this checkpoint does not need, with the reason.

    Raises:
        ValueError: names or shapes do not fit; one line lists all of them, or the first and how many more.
    """
    account = _Account(format_, target_shapes(config), config["num_hidden_layers"], drop or {})
    account.cut = (source_vocab_size or config["vocab_size"], config["vocab_size"])
    for name, canonical in canonical_names(format_, shapes).items():
        account.enter(name, canonical, shapes[name])
    return account.close()


class _Account:
    """The book in which `plan_moves` writes."""

    def __init__(self, format_: Format, targets: dict[str, Shape], num_layers: int, drop: Mapping[str, str]) -> None:
        self.format = format_
        self.targets = targets
        self.num_layers = num_layers
        self.drop = drop
        self.cut = (0, 0)
        self.moves: list[Move] = []
        self.dropped: dict[str, str] = {}
        self.filled: dict[str, list[str]] = defaultdict(list)
        self.problems: list[str] = []

    def enter(self, name: str, canonical: str, shape: Shape) -> None:
        """Find the row of one source tensor."""
        row, match = next(((row, match) for row in self.format.rows if (match := row.match(canonical))), (None, None))
        if row is None:
            self.problems.append(f"{name} {list(shape)} is unknown")
            return
        _, targets = row.for_layer(match["i"] or "")
        reason = row.reason or self.drop.get(canonical)
        if reason:
            self.dropped[name] = reason
        elif targets[0] not in self.targets:
            self.problems.append(f"{name} {list(shape)} has no place in a model of {self.num_layers} layers")
        else:
            for target in targets:
                self.filled[target].append(name)
            self.compare(name, shape, row.layout, row.layout.join(self.source_shape(targets[0]), len(targets)))
            self.moves.append(Move(name, targets, row.layout))

    def source_shape(self, target: str) -> Shape:
        """The shape of a target before its padding of the vocabulary is cut."""
        shape = self.targets[target]
        return (self.cut[0], *shape[1:]) if target in (EMBEDDING, HEAD) else shape

    def compare(self, name: str, shape: Shape, layout: Layout, expected: Shape) -> None:
        """Compare shapes, and recognise a matrix that is stored the other way round."""
        if shape == expected:
            return
        problem = f"{name} is {list(shape)}, not {list(expected)}"
        if len(expected) > 1 and shape[-2:] == expected[-2:][::-1]:
            other = Layout.CONV1D if layout is Layout.LINEAR else Layout.LINEAR
            problem += f" (this looks transposed: {other.value} layout)"
        self.problems.append(problem)

    def close(self) -> Plan:
        """Look for targets that are filled twice or not at all."""
        missing = [target for target in self.targets if target not in self.filled]
        zeros = []
        if self.format.biases_optional and not any(target.endswith(".bias") for target in self.filled):
            zeros = [target for target in missing if target.endswith(".bias")]
        self.problems += [
            f"{' and '.join(names)} are both {target}" for target, names in self.filled.items() if len(names) > 1
        ]
        expected = self.expected_sources()
        absent = dict.fromkeys(expected.get(target, target) for target in missing if target not in zeros)
        self.problems += [f"{source} is missing" for source in absent]
        if self.problems:
            raise ValueError(f"this looks like {self.format.title}, but {name_some(self.problems, '; ')}")
        order = {target: place for place, target in enumerate(self.targets)}
        moves = sorted(self.moves, key=lambda move: order[move.targets[0]])
        return Plan(moves, self.targets, self.dropped, zeros)

    def expected_sources(self) -> dict[str, str]:
        """Which source name each target should have come from."""
        return {
            target: source
            for row in self.format.rows
            for index in range(self.num_layers)
            for source, targets in [row.for_layer(index)]
            for target in targets
        }


def name_some(items: list[str], separator: str = ", ") -> str:
    """Join the first of a list, and say how many more there are."""
    more = len(items) - MAX_PROBLEMS_NAMED
    return separator.join(items[:MAX_PROBLEMS_NAMED]) + (f"{separator}and {more} more" if more > 0 else "")

"""Proves that the config takes every accepted name, refuses every impossible value in one line, and survives saving.

The reference for the defaults is transformers' own GPT2Config; for the sizes, the published parameter counts.
"""

import ast
import copy
import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, GPT2Config

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.model import configuration_gpt_scratch


# The dictionary as the tutorial prints it.
GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

# Name, field it stands for, a legal value that is not the default, a value out of range, the rule that it breaks.
ALIASES = [
    ("n_embd", "hidden_size", 96, 0, "must be at least 1"),
    ("n_layer", "num_hidden_layers", 3, -1, "must be at least 1"),
    ("n_head", "num_attention_heads", 6, 0, "must be at least 1"),
    ("n_positions", "max_position_embeddings", 48, 0, "must be at least 1"),
    ("n_inner", "intermediate_size", 100, 0, "must be at least 1"),
    ("num_key_value_heads", "num_attention_heads", 6, 0, "must be at least 1"),
    ("emb_dim", "hidden_size", 96, -96, "must be at least 1"),
    ("context_length", "max_position_embeddings", 48, 0, "must be at least 1"),
    ("drop_rate", "dropout", 0.25, 1.0, "must be at least 0 and below 1"),
]
# The same, of names that are taken by the constructor and in files, but are no attributes.
KEYWORDS = [
    ("n_ctx", "max_position_embeddings", 48, -48, "must be at least 1"),
    ("n_layers", "num_hidden_layers", 3, 0, "must be at least 1"),
    ("n_heads", "num_attention_heads", 6, -6, "must be at least 1"),
]

NAN, INF = math.nan, math.inf
SIZES = [
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
]
FLAGS = ["qkv_bias", "tie_word_embeddings", "use_cache"]
SCALES = ["layer_norm_eps", "initializer_range"]
IMPOSSIBLE = [
    *[(field, value, "must be at least 1") for field in SIZES for value in (0, -1)],
    *[(field, value, "expected int") for field in SIZES for value in (True, 1.5, 768.0, NAN, "12", [12])],
    *[(field, None, "expected int") for field in SIZES if field != "intermediate_size"],
    *[("dropout", value, "must be at least 0 and below 1") for value in (1.0, 1, 1.5, -0.1, NAN, INF, -INF)],
    *[("dropout", value, "expected float") for value in (True, "0.1", None)],
    *[(field, value, "must be above 0 and finite") for field in SCALES for value in (0.0, 0, -1e-5, INF, -INF, NAN)],
    *[(field, value, "expected float") for field in SCALES for value in (True, "1e-5", None)],
    *[(field, value, "expected bool") for field in FLAGS for value in (0, 1, 1.0, "False", None)],
    *[("hidden_act", value, "must be one of") for value in ("gelu_11", "", "GELU")],
    *[("norm_type", value, "must be one of layernorm, rmsnorm") for value in ("RMSNorm", "batchnorm", "")],
    *[("norm_type", value, "expected str") for value in (None, True)],
    *[("hidden_act", value, "expected str") for value in (None, 3, torch.nn.GELU())],
    *[(f"{name}_token_id", value, "expected int") for name in ("bos", "eos", "pad") for value in ("0", 1.5, True)],
    ("eos_token_id", [0, "1"], "expected int"),
    ("bos_token_id", [0, 1], "expected int"),
]


def fields_of_the_class() -> list[str]:
    """Read from the source which fields the class declares, one entry for each declaration."""
    tree = ast.parse(inspect.getsource(configuration_gpt_scratch))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    declarations = [node for node in config.body if isinstance(node, ast.AnnAssign)]
    return [node.target.id for node in declarations if "ClassVar" not in ast.unparse(node.annotation)]


def count_parameters(config: GPTScratchConfig) -> int:
    with torch.device("meta"):
        model = GPTScratchForCausalLM(copy.deepcopy(config))
    model.tie_weights()  # which transformers 5.0 leaves out on this device
    return model.num_parameters()


class TestNames:
    def test_tutorial_dictionary_works_as_printed(self) -> None:
        config = GPTScratchConfig(**GPT_CONFIG_124M)
        for name, value in GPT_CONFIG_124M.items():
            assert getattr(config, GPTScratchConfig.keywords.get(name, name)) == value, name
        assert config.max_position_embeddings == 256
        assert config.hidden_size == 768
        assert config.intermediate_size == 3072
        assert config.dropout == 0.1
        # 162,419,712 is the published count of this dictionary with a head of its own.
        config.tie_word_embeddings = False
        assert count_parameters(config) == 162_419_712

    def test_every_alias_is_tested_here(self) -> None:
        assert {name: field for name, field, *_ in ALIASES} == GPTScratchConfig.attribute_map
        assert {name: field for name, field, *_ in KEYWORDS} == GPTScratchConfig.keywords

    @pytest.mark.parametrize(("name", "field", "legal", "illegal", "rule"), KEYWORDS)
    def test_keyword_is_checked_like_its_field_and_is_no_attribute(
        self, name: str, field: str, legal: int, illegal: int, rule: str, tmp_path: Path
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_scratch", name: legal}))
        for config in (
            GPTScratchConfig(**{name: legal}),
            GPTScratchConfig.from_dict({name: legal}),
            GPTScratchConfig.from_pretrained(tmp_path),
            AutoConfig.from_pretrained(tmp_path),
        ):
            assert getattr(config, field) == legal
            assert not hasattr(config, name)
            assert name not in config.to_dict()
        for value, text in ((illegal, rule), ("x", "expected"), (True, "expected")):
            with pytest.raises(ValueError, match=rf"^[^\n]*'{field}'[^\n]*{text}[^\n]*$"):
                GPTScratchConfig(**{name: value})

    def test_a_reader_may_write_its_own_names_on_a_copy(self) -> None:
        """TransformerLens does, and takes `__dict__` of it for the fields of its own configuration."""
        config = GPTScratchConfig(n_layers=3, n_heads=6, n_ctx=48)
        changed = copy.deepcopy(config)
        changed.n_layers, changed.n_heads, changed.n_ctx = 3, 6, 48
        assert {name: vars(changed)[name] for name in GPTScratchConfig.keywords} == {
            "n_layers": 3,
            "n_heads": 6,
            "n_ctx": 48,
        }
        assert not set(vars(config)) & set(GPTScratchConfig.keywords)
        assert GPTScratchConfig.from_dict(changed.to_dict()).to_dict() == config.to_dict()

    @pytest.mark.parametrize(("alias", "field", "legal", "_illegal", "_rule"), ALIASES)
    def test_alias_sets_and_reads_its_field(
        self, alias: str, field: str, legal: float, _illegal: float, _rule: str
    ) -> None:
        constructed = GPTScratchConfig(**{alias: legal})
        assert getattr(constructed, field) == getattr(constructed, alias) == legal
        assert getattr(GPTScratchConfig(), field) != legal

        assigned = GPTScratchConfig()
        setattr(assigned, alias, legal)
        assert getattr(assigned, field) == getattr(assigned, alias) == legal
        assert alias not in vars(assigned)

        setattr(assigned, field, getattr(GPTScratchConfig(), field))
        assert getattr(assigned, alias) == getattr(GPTScratchConfig(), field)

    @pytest.mark.parametrize(("alias", "field", "legal", "illegal", "rule"), ALIASES)
    def test_alias_is_checked_like_its_field(
        self, alias: str, field: str, legal: float, illegal: float, rule: str
    ) -> None:
        config = GPTScratchConfig(**{alias: legal})
        for value, text in ((illegal, rule), ("x", "expected"), (True, "expected")):
            with pytest.raises(ValueError, match=rf"^[^\n]*'{field}'[^\n]*{text}[^\n]*$") as by_alias:
                GPTScratchConfig(**{alias: value})
            with pytest.raises(ValueError, match=field) as by_field:
                GPTScratchConfig(**{field: value})
            with pytest.raises(ValueError, match=field) as by_assignment:
                setattr(config, alias, value)
            assert str(by_alias.value) == str(by_field.value) == str(by_assignment.value)
            assert getattr(config, field) == legal

    @pytest.mark.parametrize(
        ("names", "values_in_message"),
        [
            ({"n_embd": 96, "emb_dim": 48}, ("n_embd", "96", "emb_dim", "48", "hidden_size")),
            ({"n_positions": 64, "n_ctx": 32}, ("n_positions", "64", "n_ctx", "32", "max_position_embeddings")),
            ({"n_embd": 96, "hidden_size": 48}, ("n_embd", "96", "hidden_size", "48")),
            ({"hidden_size": 48, "n_embd": 96}, ("n_embd", "96", "hidden_size", "48")),
            ({"drop_rate": 0.0, "dropout": 0.2}, ("drop_rate", "0.0", "dropout", "0.2")),
            ({"n_layers": 2, "n_layer": 3}, ("n_layers", "2", "n_layer", "3", "num_hidden_layers")),
            # The field is given with the value that happens to be its default.
            ({"hidden_size": 768, "n_embd": 384}, ("n_embd", "384", "hidden_size", "768")),
            ({"drop_rate": 0.0, "dropout": 0.1}, ("drop_rate", "0.0", "dropout", "0.1")),
        ],
    )
    def test_contradicting_names_are_refused(
        self, names: dict[str, float], values_in_message: tuple[str, ...]
    ) -> None:
        with pytest.raises(ValueError, match="contradicts") as error:
            GPTScratchConfig(**names)
        assert "\n" not in str(error.value)
        for part in values_in_message:
            assert part in str(error.value)

    def test_agreeing_names_are_fine(self) -> None:
        # OpenAI's config.json gives both n_ctx and n_positions.
        config = GPTScratchConfig(n_ctx=64, n_positions=64, max_position_embeddings=64, n_embd=96, hidden_size=96)
        assert config.max_position_embeddings == 64
        assert config.hidden_size == 96

    def test_n_inner_null_of_gpt2_files_means_the_derived_size(self) -> None:
        assert GPTScratchConfig(n_embd=96, n_inner=None).intermediate_size == 384


class TestValues:
    @pytest.mark.parametrize(("field", "value", "rule"), IMPOSSIBLE)
    def test_impossible_value_is_refused_in_one_line(self, field: str, value: object, rule: str) -> None:
        with pytest.raises(ValueError, match=re.escape(rule)) as at_construction:
            GPTScratchConfig(**{field: value})
        config = GPTScratchConfig()
        before = getattr(config, field)
        with pytest.raises(ValueError, match=re.escape(rule)) as at_assignment:
            setattr(config, field, value)
        for error in (at_construction, at_assignment):
            message = str(error.value)
            assert "\n" not in message
            assert field in message
            assert str(value) in message
        assert getattr(config, field) == before

    @pytest.mark.parametrize(("hidden_size", "heads"), [(770, 12), (12, 24), (1, 12)])
    def test_width_must_be_a_multiple_of_the_heads(self, hidden_size: int, heads: int, tmp_path: Path) -> None:
        rule = rf"^[^\n]*hidden_size \({hidden_size}\) must be a multiple of num_attention_heads \({heads}\)$"
        with pytest.raises(ValueError, match=rule):
            GPTScratchConfig(hidden_size=hidden_size, num_attention_heads=heads)
        with pytest.raises(ValueError, match=rule):
            GPTScratchConfig(n_head=heads, emb_dim=hidden_size)
        # By assignment the two fields change one after the other: checked on request and, by transformers 5.4 and
        # newer, before anything is written.
        config = GPTScratchConfig()
        config.hidden_size, config.num_attention_heads = hidden_size, heads
        with pytest.raises(ValueError, match=rule):
            config.validate()
        if hasattr(GPTScratchConfig, "__dataclass_fields__"):
            with pytest.raises(ValueError, match=rule):
                config.save_pretrained(tmp_path)
            assert not (tmp_path / "config.json").exists()

    def test_boundary_values_are_legal(self) -> None:
        config = GPTScratchConfig(
            vocab_size=1,
            max_position_embeddings=1,
            hidden_size=1,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=1,
            dropout=0.0,
            bos_token_id=None,
            eos_token_id=[0],
            pad_token_id=None,
        )
        assert config.intermediate_size == 1
        assert GPTScratchConfig(dropout=math.nextafter(1.0, 0.0)).dropout < 1

    @pytest.mark.parametrize("field", ["dropout", "layer_norm_eps", "initializer_range"])
    def test_int_does_for_a_float(self, field: str) -> None:
        value = 0 if field == "dropout" else 1
        assert getattr(GPTScratchConfig(**{field: value}), field) == value
        config = GPTScratchConfig()
        setattr(config, field, value)
        assert getattr(config, field) == value

    @settings(deadline=None)
    @given(hidden_size=st.integers(-4, 96), heads=st.integers(-4, 13))
    def test_exactly_the_possible_widths_are_taken(self, hidden_size: int, heads: int) -> None:
        if hidden_size >= 1 and heads >= 1 and hidden_size % heads == 0:
            config = GPTScratchConfig(hidden_size=hidden_size, num_attention_heads=heads)
            assert config.intermediate_size == 4 * hidden_size
        else:
            with pytest.raises(ValueError, match=r"^[^\n]+$"):
                GPTScratchConfig(hidden_size=hidden_size, num_attention_heads=heads)


class TestDefaults:
    def test_defaults_are_gpt2_124m(self) -> None:
        ours, theirs = GPTScratchConfig(), GPT2Config()
        for name in (
            "vocab_size",
            "n_positions",
            "n_embd",
            "n_layer",
            "n_head",
            "initializer_range",
            "tie_word_embeddings",
            "use_cache",
            "bos_token_id",
            "eos_token_id",
        ):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.layer_norm_eps == theirs.layer_norm_epsilon
        assert ours.dropout == theirs.resid_pdrop == theirs.embd_pdrop == theirs.attn_pdrop
        assert count_parameters(ours) == 124_439_808

    def test_intermediate_size_is_derived_from_the_width_under_every_name(self) -> None:
        assert GPTScratchConfig().intermediate_size == 3072
        assert GPTScratchConfig(hidden_size=96).intermediate_size == 384
        assert GPTScratchConfig(n_embd=96).intermediate_size == 384
        assert GPTScratchConfig(emb_dim=96, intermediate_size=100).intermediate_size == 100
        assert GPTScratchConfig(emb_dim=96, n_inner=100).intermediate_size == 100

    def test_each_field_is_declared_and_documented_once(self) -> None:
        fields = fields_of_the_class()
        assert len(fields) == len(set(fields)) == 17
        assert not set(fields) & set(GPTScratchConfig.attribute_map)
        assert set(GPTScratchConfig.attribute_map.values()) <= set(fields)
        assert set(fields) <= set(getattr(GPTScratchConfig, "__dataclass_fields__", fields))  # there since 5.4
        documented = re.findall(r"^ +([a-z][a-z_, ]*) \(`", configuration_gpt_scratch.GPTScratchFields.__doc__, re.M)
        names = [name for line in documented for name in line.split(", ")]
        assert sorted(names) == sorted(fields)


class TestSaving:
    # No value equals its default, so that a field lost on the way comes back different.
    CHANGED = {
        "vocab_size": 99,
        "max_position_embeddings": 48,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "intermediate_size": 100,
        "hidden_act": "relu",
        "dropout": 0.25,
        "qkv_bias": False,
        "norm_type": "rmsnorm",
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.5,
        "tie_word_embeddings": False,
        "use_cache": False,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": None,
    }

    def test_all_fields_are_changed_here(self) -> None:
        assert sorted(self.CHANGED) == sorted(fields_of_the_class())
        default = GPTScratchConfig()
        assert all(getattr(default, name) != value for name, value in self.CHANGED.items())

    @pytest.mark.parametrize("changes", [CHANGED, {}], ids=["changed", "default"])
    def test_round_trip_keeps_all_fields(self, changes: dict[str, object], tmp_path: Path) -> None:
        config = GPTScratchConfig(**changes)
        config.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert not set(written) & set(GPTScratchConfig.attribute_map)
        assert written["model_type"] == "gpt_scratch"

        loaded = [
            GPTScratchConfig.from_pretrained(tmp_path),
            AutoConfig.from_pretrained(tmp_path),
            GPTScratchConfig.from_json_file(tmp_path / "config.json"),
            GPTScratchConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        ]
        for other in loaded:
            assert type(other) is GPTScratchConfig
            for name in fields_of_the_class():
                assert getattr(other, name) == getattr(config, name), name

    def test_a_file_with_aliases_is_read_and_rewritten_canonically(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "gpt_scratch", "n_embd": 96, "n_head": 6, "n_ctx": 48, "drop_rate": 0.0})
        )
        config = GPTScratchConfig.from_pretrained(tmp_path)
        config.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert {written[name] for name in ("hidden_size", "num_attention_heads", "max_position_embeddings")} == {
            96,
            6,
            48,
        }
        assert written["dropout"] == 0.0
        assert not set(written) & {*GPTScratchConfig.attribute_map, *GPTScratchConfig.keywords}

    def test_an_impossible_file_or_override_is_refused(self, tmp_path: Path) -> None:
        GPTScratchConfig(n_positions=48).save_pretrained(tmp_path)
        # An override changes what the file says; it does not contradict it.
        assert GPTScratchConfig.from_pretrained(tmp_path, context_length=64).max_position_embeddings == 64
        with pytest.raises(ValueError, match=r"^[^\n]*'max_position_embeddings'[^\n]*at least 1, got 0$"):
            GPTScratchConfig.from_pretrained(tmp_path, context_length=0)

        written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "config.json").write_text(json.dumps({**written, "dropout": 2}))
        with pytest.raises(ValueError, match=r"^[^\n]*'dropout'[^\n]*got 2$"):
            GPTScratchConfig.from_pretrained(tmp_path)

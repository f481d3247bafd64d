"""Proves that a vocabulary of a folder gives tiktoken the ids that tokenizers itself gives, or is refused by its name.

The independent implementation is the Rust tokenizer of the same `tokenizer.json`, as its trainer left it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import build_tokenizer, load_encoding
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, named_vocabulary
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary


STORY = bundled_text_path().read_text(encoding="utf-8")
OTHERS = "Größe, Übermut und Äpfel. 大型语言模型的词表。 def f(x):\n\treturn x ** 2  # ²\n" * 20
TEXTS = [
    "",
    STORY,
    OTHERS,
    "".join(map(chr, range(256))),
    "".join(map(chr, range(0x2000, 0x2070))),
    "1234567890 12 345 ² ³ ½ ٣ 10²",
    "a\u200cb\u200db \u00a0 \u2028 x",
    " " * 300 + "x" + " " * 7 + "\n\n\n \t\t  y   ",
    f"{END_OF_TEXT}one{END_OF_TEXT}{END_OF_TEXT} two {END_OF_TEXT} <|endoftext| >",
    "it's WE'LL they're 'tis don''t",
    "🤖🏽‍💻 \ufeff\ufffd \x00\x1c\x1f\x85",
]


def trained(where: str = "first") -> Tokenizer:
    """A tokenizer as the libraries' own trainers leave it, `<|endoftext|>` as first token or as last."""
    texts = [STORY[:12_000], OTHERS]
    if where == "transformers":
        return build_tokenizer().train_new_from_iterator(texts, 600).backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_TEXT] if where == "first" else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {where: trained(where) for where in ("first", "last", "transformers")}


@pytest.fixture(scope="module")
def folders(tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for where, tokenizer in tokenizers.items():
        folders[where] = tmp_path_factory.mktemp(where)
        tokenizer.save(str(folders[where] / "tokenizer.json"))
    return folders


def assert_same_ids(text: str, tokenizer: Tokenizer, folder: Path) -> None:
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    encoding = load_encoding(str(folder))
    assert encoding.encode(text, allowed_special="all") == expected
    assert encoding.decode(expected) == text
    assert build_tokenizer(vocabulary=str(folder))(text, verbose=False)["input_ids"] == expected


@pytest.mark.parametrize("where", ["first", "last", "transformers"])
def test_ids_are_those_of_the_trained_tokenizer(
    tokenizers: dict[str, Tokenizer], folders: dict[str, Path], where: str
) -> None:
    vocabulary = load_vocabulary(str(folders[where]))
    assert (vocabulary.name, vocabulary.ids) == ("own", tokenizers[where].get_vocab())
    assert vocabulary.end_of_text_id == {"last": vocabulary.size - 1}.get(where, 0)
    for text in TEXTS:
        assert_same_ids(text, tokenizers[where], folders[where])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t'aeinst1²ü")), max_size=60))
def test_any_text_gets_the_same_ids(text: str, tokenizers: dict[str, Tokenizer], folders: dict[str, Path]) -> None:
    assert_same_ids(text, tokenizers["first"], folders["first"])


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_saved_copy_of_a_named_vocabulary_is_known_as_it(tmp_path: Path, name: str) -> None:
    build_tokenizer(vocabulary=name).save_pretrained(tmp_path)
    assert load_vocabulary(str(tmp_path)) is named_vocabulary(name)


def test_hash_is_of_what_ids_depend_on(folders: dict[str, Path], tmp_path: Path) -> None:
    first = load_vocabulary(str(folders["first"]))
    rules = json.loads((folders["first"] / "tokenizer.json").read_text(encoding="utf-8"))
    rules["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    rules["model"]["merges"] = [" ".join(merge) for merge in rules["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    assert load_vocabulary(str(tmp_path)) == first
    assert len({load_vocabulary(str(folder)).sha256 for folder in folders.values()}) >= 2


def test_file_of_an_older_release_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """GPT-2's of 2019 has neither of the two keys; tokenizers takes these values then."""
    rules = json.loads((folders["first"] / "tokenizer.json").read_text(encoding="utf-8"))
    del rules["pre_tokenizer"]["use_regex"], rules["model"]["type"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(rules), encoding="utf-8")
    for text in TEXTS:
        assert_same_ids(text, Tokenizer.from_file(str(path)), tmp_path)


def changed_model(**values: Any) -> Callable[[dict], None]:
    return lambda rules: rules["model"].update(values)


def second_way(rules: dict) -> None:
    token = next("".join(merge) for merge in rules["model"]["merges"] if len("".join(merge)) == 3)
    first = next(m for m in rules["model"]["merges"] if "".join(m) == token)
    rules["model"]["merges"].append([token[:1], token[1:]] if first[0] != token[:1] else [token[:2], token[2:]])
    for part in rules["model"]["merges"][-1]:
        rules["model"]["vocab"].setdefault(part, len(rules["model"]["vocab"]))


def swapped(rules: dict) -> None:
    merges = rules["model"]["merges"]
    merges[3], merges[9] = merges[9], merges[3]


def without_byte(rules: dict) -> None:
    vocab = rules["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    rules["model"]["merges"] = [merge for merge in rules["model"]["merges"] if "".join(merge) != last]
    vocab[last] = vocab.pop("ó")  # what no text here has


def without_merge(rules: dict) -> None:
    del rules["model"]["merges"][-1]


def unreached(rules: dict) -> None:
    """The parts of the last merge are put together otherwise: "he" + "r" as "h" + "er", both of them tokens before."""
    merges, vocab = rules["model"]["merges"], rules["model"]["vocab"]
    for number, (first, second) in reversed(list(enumerate(merges))):
        token = first + second
        for cut in range(1, len(token)):
            parts = [token[:cut], token[cut:]]
            if parts != [first, second] and all(vocab.get(part, 10**9) < vocab[token] for part in parts):
                merges[number] = parts
                return


def second_special(rules: dict) -> None:
    size = len(rules["model"]["vocab"])
    rules["added_tokens"].append({**rules["added_tokens"][0], "id": size, "content": "<|user|>"})


REFUSED = {
    "normalizer": (lambda rules: rules.update(normalizer={"type": "NFC"}), "has the normalizer 'NFC'"),
    "prefix space": (lambda rules: rules["pre_tokenizer"].update(add_prefix_space=True), "has add_prefix_space True"),
    "no pattern": (lambda rules: rules["pre_tokenizer"].update(use_regex=False), "has use_regex False"),
    "no splitter": (lambda rules: rules.update(pre_tokenizer=None), "has type None in its pre_tokenizer"),
    "another splitter": (lambda rules: rules.update(pre_tokenizer={"type": "Whitespace"}), "has type 'Whitespace'"),
    "another model": (changed_model(type="Unigram"), "has a model of type 'Unigram', not 'BPE'"),
    "dropout": (changed_model(dropout=0.1), "has dropout 0.1"),
    "ignore_merges": (changed_model(ignore_merges=True), "has ignore_merges True"),
    "prefix of subwords": (changed_model(continuing_subword_prefix="##"), "has continuing_subword_prefix '##'"),
    "suffix of words": (changed_model(end_of_word_suffix="</w>"), "has end_of_word_suffix '</w>'"),
    "two special tokens": (second_special, "has the special tokens ['<|endoftext|>', '<|user|>'], not"),
    "no special token": (lambda rules: rules.update(added_tokens=[]), "has the special tokens [], not <|endoftext|>"),
    "lstrip": (lambda rules: rules["added_tokens"][0].update(lstrip=True), "has lstrip True for <|endoftext|>"),
    "no special one": (lambda rules: rules["added_tokens"][0].update(special=False), "has special False for"),
    "another id": (lambda rules: rules["added_tokens"][0].update(id=7), "has two ids for <|endoftext|>, 0 and 7"),
    "gap": (lambda rules: rules["model"]["vocab"].update(x=900), "has 600 tokens whose ids are not 0 to 599"),
    "missing byte": (without_byte, "has no token for the byte 0xF3"),
    "character": (
        lambda rules: rules["model"]["vocab"].update({"日": 600}),
        "has the token '日', which is not spelled",
    ),
    "foreign merge": (
        lambda rules: rules["model"]["merges"].append(["x", "日"]),
        "has the merge ['x', '日'], of what",
    ),
    "second merge": (second_way, "whose token has another merge too, or an id below that of one before"),
    "another order": (swapped, "whose token has another merge too, or an id below that of one before"),
    "missing merge": (without_merge, "which no merge makes"),
    "unreached merge": (unreached, "has 1 merges that tiktoken does not reach, the first "),
    "no merges": (changed_model(merges=7), "is not a tokenizer as tokenizers writes it"),
    "no model": (lambda rules: rules.pop("model"), "is not a tokenizer as tokenizers writes it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_tiktoken_would_read_otherwise_is_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    change, words = REFUSED[name]
    rules = json.loads((folders["first"] / "tokenizer.json").read_text(encoding="utf-8"))
    change(rules)
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    with pytest.raises(ValueError, match="make one with hf-gpt-scratch train-tokenizer$") as refusal:
        load_vocabulary(str(tmp_path))
    assert str(refusal.value).startswith(f"{tmp_path}/tokenizer.json ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_normalizer_and_prefix_space_do_change_ids(folders: dict[str, Path]) -> None:
    """The control: what is refused gives other ids."""
    for change in ("normalizer", "prefix space"):
        tokenizer = Tokenizer.from_file(str(folders["first"] / "tokenizer.json"))
        if change == "normalizer":
            tokenizer.normalizer = normalizers.Lowercase()
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        assert tokenizer.encode("The lamp").ids != load_encoding(str(folders["first"])).encode_ordinary("The lamp")


def test_what_is_no_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="the vocabulary gpt3 is neither gpt2, bytes nor a folder: name that with its"
    ):
        load_vocabulary("gpt3")
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json, so it is not a vocabulary: make one"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*model\?"):
        load_vocabulary(str(tmp_path))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_vocabulary(str(tmp_path / "model"))

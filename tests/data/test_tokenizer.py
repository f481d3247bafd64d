"""Proves that the packaged vocabulary is OpenAI's, and that tiktoken and transformers read it alike, offline.

The two libraries are independent implementations of byte-level BPE: each is the other's reference. `encoder.json` of
OpenAI, which the package does not ship, is the reference for the ids.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

import hf_gpt_scratch.data.tokenizer
from hf_gpt_scratch.data.tokenizer import (
    build_tokenizer,
    encode_to_numpy,
    load_encoding,
    text_to_token_ids,
    token_ids_to_text,
)
from hf_gpt_scratch.data.vocabulary import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    VOCAB_SHA256,
    join_merges,
    named_vocabulary,
)


PACKAGE = Path(hf_gpt_scratch.__file__).parent
# The hash that tiktoken pins for encoder.json (tiktoken_ext/openai_public.py).
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

NASTY_TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\r\n",
    "line\r\nline\r\n\r\n  indented\r",
    "\t\ttab\t \tspace",
    " leading and trailing ",
    "a  b   c    d",
    "word \n \n word",
    "x \u00a0 y",
    "\u3000ideographic\u3000space\u3000",
    "\u2028line\u2029paragraph\u2028",
    "\u180emongolian\u180e separator",
    "\u200bzero\u200bwidth\u200c\u200d\u2060",
    "\u1680ogham \u2000\u2001\u2002\u2003 \u202f \u205f",
    "\x85next\x85line \x1c\x1d\x1e\x1f",
    "\ufeffbyte order mark\ufeff",
    "\x00",
    "nul\x00nul\x00\x00",
    "".join(map(chr, range(32))) + "\x7f",
    "".join(map(chr, range(0x80, 0x100))),
    "\ufffd\ufffe\uffff",
    "\U0010ffff\U000f0000\ue000",
    "\u0378 unassigned \U0001fbff",
    "👩‍👩‍👧‍👦 family",
    "🏳️‍🌈🏴‍☠️👍🏽",
    "🇩🇪🇫🇷",
    "e\u0301 cafe\u0301 caf\u00e9",
    "Z\u0351\u036b\u0343a\u0321\u0322l\u0337g\u0336o\u0335",
    "\u0301lone combining mark",
    "שלום עולם",
    "مرحبا \u200fبالعالم\u202e reversed\u202c",
    "नमस्ते दुनिया",
    "你好,世界。こんにちは 안녕하세요",
    "ภาษาไทย ខ្មែរ",
    "ﬁ ligature Ǆ ǅ ß ẞ İ ı",
    "1234567890 ٣٤٥ Ⅷ ½ ² ④ 𝟘",
    "3.14159e-10, 1,000,000; 0x1F",
    "I'm you're he's we've they'll I'd don't",
    "I'M YOU'RE HE'S WE'VE THEY'LL I'D DON'T",
    "I'm You'Re he'S we'vE they'lL o\u2019clock I\u2019ll",
    "'s't're've'm'll'd ' s '' 'sx 'tx",
    "'Stock 'STOCK 'Time 'READ 'Verse 'Mine 'Llama 'Day",
    "a" * 3000,
    " " * 3000,
    "\n" * 1000 + "x",
    "é" * 1000,
    "=" * 999 + "-" * 999,
    "ab" * 1000 + " " * 99 + "ab",
    "def f(x):\n    return {'a': [x, -1]}  # ¿?\n",
    "https://example.org/a?b=c&d=%20#e_f-g~h",
    END_OF_TEXT,
    END_OF_TEXT * 3,
    f" {END_OF_TEXT} ",
    f"one{END_OF_TEXT}two\n{END_OF_TEXT}\nthree",
    f"{END_OF_TEXT}'s {END_OF_TEXT}1",
    "<|endoftext",
    "endoftext|>",
    "<|endoftext|",
    "<|ENDOFTEXT|>",
    "<| endoftext |>",
    "<|endo\u200bftext|>",
    "<<|endoftext|>>",
    "<|endof<|endoftext|>text|>",
    "<|pad|> <s> </s> [UNK] ĠĠ Ċ Ġthe",
]
FRAGMENTS = [
    END_OF_TEXT, "<|endoftext", "|>", "<|", "'s", "'S", "'", " ", "   ", "\n", "\r\n", "\t", "\u3000", "\x00", "the",
    " of", "12", "²", "\u0301", "\u200d", "👩‍👧", "\ufeff", "\u2028", "\x85", "é", "שלום", "...",
]  # fmt: skip
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | ANY_TEXT, max_size=12).map("".join)


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return load_encoding()


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return build_tokenizer()


@pytest.fixture(params=["default", "tiktoken", "transformers"])
def any_tokenizer(
    request: pytest.FixtureRequest, encoding: tiktoken.Encoding, tokenizer: GPT2Tokenizer
) -> tiktoken.Encoding | GPT2Tokenizer | None:
    return {"default": None, "tiktoken": encoding, "transformers": tokenizer}[request.param]


def assert_same_ids_and_round_trip(text: str, encoding: tiktoken.Encoding, tokenizer: GPT2Tokenizer) -> None:
    ids = encoding.encode(text, allowed_special="all")
    assert tokenizer(text)["input_ids"] == ids
    assert encoding.decode(ids) == tokenizer.decode(ids) == text

    ordinary_ids = encoding.encode_ordinary(text)
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == ordinary_ids
    assert END_OF_TEXT_ID not in ordinary_ids
    assert encoding.decode(ordinary_ids) == tokenizer.decode(ordinary_ids) == text


def test_packaged_vocabulary_has_the_published_hash() -> None:
    content = (PACKAGE / "assets" / "vocab.bpe").read_bytes()
    assert hashlib.sha256(content).hexdigest() == VOCAB_SHA256
    assert VOCAB_SHA256 in (PACKAGE / "assets" / "README.md").read_text(encoding="utf-8")


def test_tampered_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PACKAGE / "assets", tmp_path / "assets")
    monkeypatch.setattr("hf_gpt_scratch.data.vocabulary.files", lambda package: tmp_path)
    assert build_tokenizer().get_vocab()["<|endoftext|>"] == END_OF_TEXT_ID

    vocab_file = tmp_path / "assets" / "vocab.bpe"
    vocab_file.write_bytes(vocab_file.read_bytes().replace("Ġ t\nĠ a\n".encode(), "Ġ a\nĠ t\n".encode()))
    named_vocabulary.cache_clear()
    for build in (load_encoding, build_tokenizer):
        with pytest.raises(ValueError, match=f"has sha256 [0-9a-f]{{64}}, not {VOCAB_SHA256}: reinstall") as refusal:
            build()
        assert "\n" not in str(refusal.value)


def test_ids_are_those_of_encoder_json(tokenizer: GPT2Tokenizer, shared_data: Path) -> None:
    published = json.loads((shared_data / "gpt2_vocab" / "encoder.json").read_text(encoding="utf-8"))
    assert len(published) == 50_257
    assert tokenizer.get_vocab() == published


def test_encoder_json_is_rebuilt_to_the_byte(tokenizer: GPT2Tokenizer) -> None:
    in_order = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    assert hashlib.sha256(json.dumps(in_order).encode()).hexdigest() == ENCODER_SHA256


def test_every_id_decodes_alike(encoding: tiktoken.Encoding, tokenizer: GPT2Tokenizer) -> None:
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    all_ids = range(50_257)
    assert encoding.n_vocab == len(tokenizer) == len(all_ids)
    assert encoding.encode_single_token(END_OF_TEXT) == tokenizer.vocab[END_OF_TEXT] == END_OF_TEXT_ID

    spelled = tokenizer.convert_ids_to_tokens(list(all_ids))
    assert [bytes(byte_of[char] for char in token) for token in spelled] == encoding.decode_tokens_bytes(all_ids)
    assert tokenizer.batch_decode([[i] for i in all_ids]) == [encoding.decode([i]) for i in all_ids]


def test_known_ids(any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None) -> None:
    assert text_to_token_ids("Every effort moves you", any_tokenizer).tolist() == [[6109, 3626, 6100, 345]]


def test_the_verdict_has_5145_tokens(
    any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None, shared_data: Path
) -> None:
    text = (shared_data / "the-verdict.txt").read_text(encoding="utf-8")
    token_ids = text_to_token_ids(text, any_tokenizer)
    assert token_ids.shape == (1, 5145)
    assert token_ids_to_text(token_ids, any_tokenizer) == text


@pytest.mark.parametrize("text", NASTY_TEXTS, ids=lambda text: ascii(text[:12]))
def test_byte_vocabulary_has_a_token_for_each_byte(text: str) -> None:
    encoding, tokenizer = load_encoding("bytes"), build_tokenizer(vocabulary="bytes")
    assert encoding.n_vocab == len(tokenizer) == 257
    ids = encoding.encode_ordinary(text)
    assert encoding.decode_tokens_bytes(ids) == [bytes([byte]) for byte in text.encode()]
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    assert encoding.encode(END_OF_TEXT, allowed_special="all") == tokenizer(END_OF_TEXT)["input_ids"] == [256]


@pytest.mark.parametrize("text", NASTY_TEXTS, ids=lambda text: ascii(text[:12]))
def test_nasty_texts_get_the_same_ids(text: str, encoding: tiktoken.Encoding, tokenizer: GPT2Tokenizer) -> None:
    assert_same_ids_and_round_trip(text, encoding, tokenizer)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_any_text_gets_the_same_ids(text: str, encoding: tiktoken.Encoding, tokenizer: GPT2Tokenizer) -> None:
    assert_same_ids_and_round_trip(text, encoding, tokenizer)


def test_every_assigned_character_is_classified_alike(encoding: tiktoken.Encoding, tokenizer: GPT2Tokenizer) -> None:
    # Each library has its own Unicode tables. Beyond these planes lie only private and unassigned characters.
    code_points = [*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200)]
    for start in range(0, len(code_points), 1024):
        # A letter, digit, sign or space before the character: the ids show into which of these classes it was put.
        text = "".join(f"a{c}1{c}!{c} {c}" for c in map(chr, code_points[start : start + 1024]))
        assert tokenizer(text, verbose=False)["input_ids"] == encoding.encode_ordinary(text), f"block {start:#x}"


def test_swapped_merges_change_ids(encoding: tiktoken.Encoding, tokenizer: GPT2Tokenizer) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    assert len(merges) == 50_000
    first, second = merges.index(("h", "e")), merges.index(("e", "r"))
    merges[first], merges[second] = merges[second], merges[first]
    swapped = GPT2Tokenizer(vocab=model["vocab"], merges=merges)
    assert swapped("her")["input_ids"] != encoding.encode("her") == tokenizer("her")["input_ids"]


def test_saved_tokenizer_reloads_unchanged(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    build_tokenizer(model_max_length=256).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    saved_config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved_config["tokenizer_class"] == "GPT2Tokenizer"
    assert not saved_config.keys() & {"is_local", "local_files_only", "name_or_path", "auto_map"}

    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(reloaded) is GPT2Tokenizer
    assert reloaded.model_max_length == 256
    assert reloaded.clean_up_tokenization_spaces is False
    assert reloaded.special_tokens_map == dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT
    )
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    for text in NASTY_TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert reloaded(text)["input_ids"] == ids
        assert reloaded.decode(ids) == text

    batch = reloaded(["you", "Every effort"], padding=True)
    assert batch["input_ids"] == [[END_OF_TEXT_ID, 5832], [6109, 3626]]
    assert batch["attention_mask"] == [[0, 1], [1, 1]]


def test_merges_as_strings_are_read_as_the_pairs_are(tokenizer: GPT2Tokenizer) -> None:
    text = tokenizer.backend_tokenizer.to_str()
    content = json.loads(text)
    pairs = content["model"]["merges"]
    content["model"]["merges"] = join_merges(pairs)
    assert content["model"]["merges"][:2] == ["Ġ t", "Ġ a"]
    read = Tokenizer.from_str(json.dumps(content))
    assert json.loads(read.to_str())["model"]["merges"] == pairs
    for sample in NASTY_TEXTS:
        assert read.encode(sample).ids == tokenizer(sample)["input_ids"]


@pytest.mark.parametrize("merge", [("a b", "c"), ("a", " "), ("#version", "b")])
def test_a_merge_that_no_string_can_hold_is_refused(merge: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be written as one string: keep the merges as pairs") as refusal:
        join_merges([("a", "b"), merge])
    assert repr(list(merge)) in str(refusal.value)
    # What tokenizers would make of the string: an error, or in silence another number of merges.
    vocab = {token: number for number, token in enumerate(["".join(merge), *merge])}
    content = {"model": {"type": "BPE", "vocab": vocab, "merges": [" ".join(merge)]}, "added_tokens": []}
    try:
        read = Tokenizer.from_str(json.dumps(content))
    except Exception as error:
        assert "erge" in str(error)  # noqa: PT017
    else:
        assert json.loads(read.to_str())["model"]["merges"] == []


def test_each_call_builds_a_new_tokenizer_but_shares_the_encoding(encoding: tiktoken.Encoding) -> None:
    changed = build_tokenizer()
    changed.add_tokens(["<|extra|>"])
    assert len(build_tokenizer()) == 50_257
    assert load_encoding() is encoding


def test_text_to_token_ids_is_the_tutorial_function(
    any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None, encoding: tiktoken.Encoding
) -> None:
    text = f"Hello, do you like tea?{END_OF_TEXT} In the sunlit terraces"
    token_ids = text_to_token_ids(text, any_tokenizer)
    expected = torch.tensor(encoding.encode(text, allowed_special={END_OF_TEXT})).unsqueeze(0)
    assert token_ids.dtype == torch.int64
    assert torch.equal(token_ids, expected)
    assert token_ids[0, 7] == END_OF_TEXT_ID
    assert token_ids_to_text(token_ids, any_tokenizer) == text
    assert token_ids_to_text(token_ids.squeeze(0), any_tokenizer) == text


def test_empty_text_is_an_empty_batch_of_one(any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None) -> None:
    token_ids = text_to_token_ids("", any_tokenizer)
    assert token_ids.shape == (1, 0)
    assert token_ids.dtype == torch.int64
    assert token_ids_to_text(token_ids, any_tokenizer) == token_ids_to_text(token_ids[0], any_tokenizer) == ""


def test_split_character_decodes_to_replacement(any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None) -> None:
    first_part_of_emoji = text_to_token_ids("👩", any_tokenizer)[:, :1]
    assert token_ids_to_text(first_part_of_emoji, any_tokenizer) == "\ufffd"


@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3), (1, 1, 3)])
def test_other_shapes_are_refused(
    shape: tuple[int, ...], any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None
) -> None:
    with pytest.raises(ValueError, match=r"token_ids has shape \[.*\], not \[T\] or \[1, T\]"):
        token_ids_to_text(torch.zeros(shape, dtype=torch.long), any_tokenizer)


def test_scores_are_no_ids() -> None:
    with pytest.raises(ValueError, match="token_ids has dtype torch.float32, not that of whole numbers"):
        token_ids_to_text(torch.tensor([1.0, 2.5]))


@pytest.mark.parametrize("token_id", [-100, 50_257])
def test_unknown_ids_are_refused(token_id: int, any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None) -> None:
    with pytest.raises(ValueError, match=rf"token id {token_id} is outside the vocabulary, 0\.\.50256"):
        token_ids_to_text(torch.tensor([6109, token_id]), any_tokenizer)


@pytest.mark.parametrize("filling", [" ", "\n", " \n\t\u3000\r"], ids=repr)
@pytest.mark.parametrize("special", [True, False])
def test_white_space_beyond_the_limit_of_tiktokens_pattern(filling: str, special: bool) -> None:
    """Over a million characters, for which tiktoken itself raises: the ids are those of the other library."""
    run = filling * (1_100_000 // len(filling))
    text = f"one{run}two <|endoftext|>{run[:3000]}<|endoftext|> {run[:3000]}three{run[:3000]}"
    with pytest.raises(ValueError, match="Regex error"):
        load_encoding().encode_to_numpy(text, disallowed_special=())
    expected = build_tokenizer().encode(text, split_special_tokens=not special, verbose=False)
    assert encode_to_numpy(text, load_encoding(), special).tolist() == expected
    if special:
        assert text_to_token_ids(text).tolist() == [expected]


def test_long_runs_take_tiktoken_no_longer_than_their_letters(encoding: tiktoken.Encoding) -> None:
    """Some 0.1 s for 400,000; up to 0.12 the square of the letters, almost a minute."""
    start = time.thread_time()
    assert len(encoding.encode_ordinary("a" * 400_000)) == 100_000
    assert time.thread_time() - start < 5


def test_what_tiktoken_does_with_special_tokens_and_threads(encoding: tiktoken.Encoding) -> None:
    for encode in (encoding.encode, encoding.encode_to_numpy, lambda text: encoding.encode_batch([text])):
        with pytest.raises(ValueError, match="disallowed special token"):
            encode(f"a{END_OF_TEXT}")
    assert END_OF_TEXT_ID not in encoding.encode_ordinary(f"a{END_OF_TEXT}")
    texts = [f"{number} " + "word " * (number % 7) ** 4 for number in range(500)]
    one_by_one = [encoding.encode_ordinary(text) for text in texts]
    assert encoding.encode_ordinary_batch(texts, num_threads=8) == one_by_one


def test_lone_surrogate_is_refused(any_tokenizer: tiktoken.Encoding | GPT2Tokenizer | None) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate '\\udcff' at index 3"):
        text_to_token_ids("caf\udcff", any_tokenizer)


OFFLINE_SCRIPT = """
import sys

contacts = []
network = {"socket.connect", "socket.getaddrinfo"}
sys.addaudithook(lambda event, args: contacts.append(event) if event in network else None)

from transformers import AutoTokenizer
from hf_gpt_scratch.data.tokenizer import build_tokenizer, load_encoding

assert load_encoding().encode("Every effort moves you") == [6109, 3626, 6100, 345]
build_tokenizer().save_pretrained(sys.argv[1])
assert AutoTokenizer.from_pretrained(sys.argv[1]).encode("Every effort moves you") == [6109, 3626, 6100, 345]
assert not contacts, contacts

import tiktoken

try:
    tiktoken.get_encoding("gpt2")
except OSError:
    assert contacts
    print("the usual way needs a network, ours does not")
"""


def test_works_without_network(tmp_path: Path) -> None:
    closed_port = "http://127.0.0.1:9"
    env = {name: value for name, value in os.environ.items() if not name.upper().endswith(("_PROXY", "_OFFLINE"))}
    env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), closed_port)
    env |= {"TIKTOKEN_CACHE_DIR": "", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE_SCRIPT, str(tmp_path / "saved")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "the usual way needs a network, ours does not"

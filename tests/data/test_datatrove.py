"""Proves that the files of datatrove's own tokenizer step become our shards, and that files of another kind do not.

What is read is compared with datatrove's own reader, and with plain tiktoken over the same documents.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.data import datatrove as reader
from hf_gpt_scratch.data.datatrove import read_datatrove
from hf_gpt_scratch.data.document_sources import file_sources
from hf_gpt_scratch.data.preparation.prepare import Choices, prepare
from hf_gpt_scratch.data.token_folder import ShardedTokens
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID
from tests.data.plain_tokens import plain_tokens


pytest.importorskip("datatrove", reason="datatrove is not installed: pip install datatrove")


def tokenise(folder: Path, texts: list[str], tokenizer: Path, **options: object) -> None:
    """Datatrove's step itself, on one machine, as two of its tasks."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    options = {"eos_token": END_OF_TEXT, "shuffle_documents": False, **options}
    for rank in range(2):
        step = DocumentTokenizer(str(folder), tokenizer_name_or_path=str(tokenizer), **options)
        documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts[rank::2])]
        step.run(documents, rank=rank, world_size=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def texts(documents: list[str]) -> list[str]:
    return [text for text in documents if END_OF_TEXT not in text]  # where it stands, datatrove makes it the token


@pytest.fixture
def written(texts: list[str], tokenizer: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "datatrove"
    tokenise(folder, texts, tokenizer)
    return folder


def test_its_files_become_shards(written: Path, texts: list[str], tmp_path: Path) -> None:
    from datatrove.utils.dataset import DatatroveFolderDataset

    assert sorted(path.name for path in written.iterdir())[:3] == [
        "00000_unshuffled.ds",
        "00000_unshuffled.ds.index",
        "00000_unshuffled.ds.metadata",
    ]
    sources = file_sources([written], None, 2, lambda num_bytes: None)
    assert [source.kind for source in sources] == ["datatrove", "datatrove"]
    prepare(tmp_path / "out", sources, Choices(shard_tokens=1000), 2, lambda line: None)
    row = ShardedTokens(tmp_path / "out", "train")
    expected = plain_tokens(texts[0::2]) + plain_tokens(texts[1::2])
    assert row[0 : len(row)].tolist() == expected

    # Its own reader, which leaves out what does not fill a window at the end of a file.
    windows = DatatroveFolderDataset(str(written), seq_len=49, token_size=2)
    first = [token for number in range(len(windows.files[0])) for token in windows[number]["input_ids"].tolist()]
    assert first == expected[: len(first)]
    assert len(first) > 1000


def test_shuffled_documents_are_taken_whole(texts: list[str], tokenizer: Path, tmp_path: Path) -> None:
    tokenise(tmp_path / "datatrove", texts, tokenizer, shuffle_documents=True, seed=1)
    sources = file_sources([tmp_path / "datatrove"], None, 1, lambda num_bytes: None)
    index = prepare(tmp_path / "out", sources, Choices(validation_fraction=0.2), 1, lambda line: None)
    found = []
    for split in ("train", "validation"):
        row = ShardedTokens(tmp_path / "out", split)
        tokens = row[0 : len(row)]
        found += [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == END_OF_TEXT_ID) + 1)[:-1]]
    assert sorted(found) == sorted(plain_tokens([text]) for text in texts)
    assert index["splits"]["validation"]["num_documents"] > 3


def test_recipe_of_the_readme_gives_the_same_files_again(
    texts: list[str], project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents are shuffled by default, and without a seed by another draw each time; with one by the same."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    readme = (project_root / "hf_gpt_scratch" / "data" / "README.md").read_text(encoding="utf-8")
    assert 'eos_token="<|endoftext|>",\n        shuffle_documents=False,\n' in readme
    monkeypatch.chdir(tmp_path)
    build_tokenizer().save_pretrained("gpt2-tokenizer")
    files = {}
    in_order, seeded = {"shuffle_documents": False}, {"seed": 1}
    for name, more in {
        "once": in_order, "again": in_order, "seeded": seeded, "seeded again": seeded,
        "default": {}, "default again": {},
    }.items():  # fmt: skip
        step = DocumentTokenizer(name, "gpt2-tokenizer/tokenizer.json", eos_token="<|endoftext|>", **more)
        step.run([Document(text=text, id=str(number)) for number, text in enumerate(texts)])
        files[name] = {path.name: path.read_bytes() for path in Path(name).iterdir()}
        (path,) = Path(name).glob("*.ds")
        assert sum(piece.ends_document for piece in read_datatrove(path)) == len(texts)
    assert files["once"] == files["again"]
    assert files["seeded"] == files["seeded again"]
    assert files["seeded"].keys() != files["once"].keys()
    assert files["default"].keys() == files["default again"].keys()
    assert files["default"] != files["default again"]


def test_what_the_readme_says_of_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A separator that is written out becomes the token, and a row that is not JSON is left out."""
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    monkeypatch.chdir(tmp_path)
    build_tokenizer().save_pretrained("gpt2-tokenizer")
    Path("corpus").mkdir()
    Path("corpus/rows.jsonl").write_text(
        '{"text": "good"}\n{broken\n{"text": "a <|endoftext|> b"}\n', encoding="utf-8"
    )
    options = {"eos_token": END_OF_TEXT, "shuffle_documents": False}
    DocumentTokenizer("tokens", "gpt2-tokenizer/tokenizer.json", **options).run(JsonlReader("corpus").run())
    (path,) = Path("tokens").glob("*.ds")
    end, ids = END_OF_TEXT_ID, np.fromfile(path, np.uint16).tolist()
    assert ids == [*build_tokenizer()("good")["input_ids"], end, 64, 220, end, 275, end]


@pytest.mark.parametrize(("most", "sizes"), [(6, [12, 12, 12, 0]), (14, [18, 18, 0]), (20, [24, 12])])
def test_most_tokens_of_a_file(tokenizer: Path, tmp_path: Path, most: int, sizes: list[int]) -> None:
    """Exceeded by up to a document, the last file may have none, and unshuffled the number is ignored."""
    texts = [f"{number} b c d e" for number in range(12)]  # 6 tokens each, for two tasks
    tokenise(tmp_path / "shuffled", texts, tokenizer, max_tokens_per_file=most, shuffle_documents=True, seed=1)
    tokenise(tmp_path / "in order", texts, tokenizer, max_tokens_per_file=most)
    paths = sorted((tmp_path / "shuffled").glob("00000_*.ds"))
    assert [path.stat().st_size // 2 for path in paths] == sizes
    assert [sum(1 for _ in read_datatrove(path)) for path in paths] == [size // 6 for size in sizes]
    assert [path.stat().st_size // 2 for path in (tmp_path / "in order").glob("00000_*.ds")] == [36]


@pytest.mark.parametrize(
    ("options", "left"),
    [({"shuffle_documents": True, "seed": 1, "shuffle_chunk_size": 10}, 30), ({"save_loss_metadata": True}, 32)],
)
def test_settings_that_lose_tokens_are_refused(tokenizer: Path, tmp_path: Path, options: dict, left: int) -> None:
    """Of 36 tokens datatrove drops what fills no chunk, and a range without loss at the end of a text with its end."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    step = DocumentTokenizer(
        str(tmp_path), str(tokenizer), eos_token=END_OF_TEXT, **{"shuffle_documents": False, **options}
    )
    ranges = [[(4, 9)], *[[]] * 5]
    step.run([Document(text="a b c d e", id=str(n), metadata={"no_loss_ranges": ranges[n]}) for n in range(6)])
    (path,) = tmp_path.glob("*.ds")
    assert path.stat().st_size // 2 == left
    with pytest.raises(ValueError, match=r"document \d does not end with <\|endoftext\|>: write it with Document"):
        list(read_datatrove(path))


def test_long_document_comes_in_pieces(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written / "00000_unshuffled.ds"
    whole = np.concatenate([np.append(p.content, END_OF_TEXT_ID) for p in read_datatrove(path)])
    monkeypatch.setattr(reader, "PIECE_TOKENS", 10)
    pieces = list(read_datatrove(path))
    assert max(len(piece.content) for piece in pieces) <= 10
    parts = [np.append(p.content, END_OF_TEXT_ID) if p.ends_document else p.content for p in pieces]
    assert np.array_equal(np.concatenate(parts), whole)


def test_wide_tokens_are_read(written: Path) -> None:
    """Datatrove takes 4 bytes for a vocabulary beyond 65,536 ids."""
    path = written / "00000_unshuffled.ds"
    narrow = [piece.content.tolist() for piece in read_datatrove(path)]
    path.write_bytes(np.fromfile(path, "<u2").astype("<u4").tobytes())
    metadata = Path(f"{path}.metadata")
    metadata.write_text(metadata.read_text().replace("|2\n", "|4\n"))
    assert [piece.content.tolist() for piece in read_datatrove(path)] == narrow


def shift_tokens(path: Path) -> None:
    """The same lengths in another vocabulary."""
    tokens = np.fromfile(path, "<u2")
    tokens[tokens != END_OF_TEXT_ID] ^= 1
    path.write_bytes(tokens.tobytes())


def add_a_document(path: Path) -> None:
    index = Path(f"{path}.index")
    last = struct.unpack("<Q", index.read_bytes()[-8:])[0]
    index.write_bytes(index.read_bytes() + struct.pack("<Q", last + 3))


def put_in_a_large_id(path: Path) -> None:
    tokens = np.fromfile(path, "<u2")
    tokens[-2] = 60_000
    path.write_bytes(tokens.tobytes())


DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-2]), "bytes, not those of"),
    "longer index": (add_a_document, "bytes, not those of"),
    "other vocabulary": (shift_tokens, "is of another vocabulary than GPT-2's"),
    "id too large": (put_in_a_large_id, "holds the token 60000, which GPT-2's vocabulary lacks"),
    "no index": (lambda path: Path(f"{path}.index").unlink(), r"ds\.index"),
    "no metadata": (lambda path: Path(f"{path}.metadata").unlink(), r"ds\.metadata"),
    "odd metadata": (lambda path: Path(f"{path}.metadata").write_text("gpt2\n"), "does not say how many bytes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_files_that_do_not_fit_are_refused(written: Path, name: str) -> None:
    damage: Callable[[Path], object] = DAMAGES[name][0]
    path = written / "00000_unshuffled.ds"
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=DAMAGES[name][1]):
        list(read_datatrove(path))


def test_documents_without_a_separator_are_refused(texts: list[str], tokenizer: Path, tmp_path: Path) -> None:
    tokenise(tmp_path, texts, tokenizer, eos_token=None)
    with pytest.raises(ValueError, match=r"document 1 does not end with <\|endoftext\|>: write it with Document"):
        list(read_datatrove(tmp_path / "00000_unshuffled.ds"))

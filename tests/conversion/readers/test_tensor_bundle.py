"""Proves that checkpoints are read byte for byte as TensorFlow reads them, and that no damaged one is.

The good files were written by TensorFlow itself; where it is not installed, and for what it never writes, by an
encoder of the tests that TensorFlow's reader accepts. The corpora of damage come from a fixed seed.
"""

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.conversion.readers import tensor_bundle
from hf_gpt_scratch.conversion.readers.leveldb_table import Cursor, block_entries, parse_table, read_block
from hf_gpt_scratch.conversion.readers.named_tensors import free_pages
from hf_gpt_scratch.conversion.readers.tensor_bundle import (
    CheckpointError,
    find_checkpoint_prefix,
    open_tensor_bundle,
)
from hf_gpt_scratch.conversion.readers.tf_checkpoint import open_tf_checkpoint
from tests.conversion.bundle_writer import (
    TINY,
    block,
    entry,
    gpt2_shapes,
    header,
    slice_key,
    table,
    with_trailer,
    write_bundle,
)
from tests.conversion.light_interpreter import PEAK, run_light
from tests.conversion.tf_writer import write_with_saver


READERS = {"bundle": open_tensor_bundle, "tensorflow": open_tf_checkpoint}
ADAM_SLOTS = ("/Adam", "/Adam_1")


def contents(tensors) -> dict[str, tuple]:
    """Everything about every tensor, in order."""
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in tensors.items()}


def facts(tensors) -> tuple:
    """What is known without reading."""
    return list(tensors), list(tensors.shapes.items()), list(tensors.dtypes.items()), list(tensors.skipped.items())


# Held against TensorFlow


@pytest.mark.parametrize("kind", ["openai", "training", "sharded", "dtypes", "objects", "partitioned", "tiled"])
def test_byte_for_byte_what_tensorflow_reads(tf_checkpoints, kind):
    ours, theirs = open_tensor_bundle(tf_checkpoints[kind]), open_tf_checkpoint(tf_checkpoints[kind])
    assert facts(ours) == facts(theirs)
    assert contents(ours) == contents(theirs)
    assert len(ours) > 0


def test_names_that_openai_gave(tf_checkpoints):
    assert dict(open_tensor_bundle(tf_checkpoints["openai"]).shapes) == gpt2_shapes(**TINY)
    names = set(open_tensor_bundle(tf_checkpoints["training"]))
    slots = {name + slot for name in gpt2_shapes(**TINY) for slot in ADAM_SLOTS}
    assert names == {*gpt2_shapes(**TINY), *slots, "global_step", "beta1_power", "beta2_power"}


def test_sharded_means_several_data_files(tf_checkpoints):
    # One for each of three devices, and one for what has no device.
    assert len(list(tf_checkpoints["sharded"].glob("model.ckpt.data-*-of-00004"))) == 4


def test_blocks_of_an_index_of_tensorflow(tensorflow, tmp_path):
    """Sorted keys in blocks of 256 KiB, as the encoder of the tests writes them: what a key shares with the one before
    is left out, except in each 16th; nothing is compressed.
    """
    names = [f"model/h{number:05d}/attn/c_attn/w" for number in range(9000)]
    values = [tensorflow.zeros(())] * len(names)
    tensorflow.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
    index = (tmp_path / "model.ckpt.index").read_bytes()
    assert list(parse_table(index)) == [b"", *(name.encode() for name in names)]
    footer = Cursor(index[-48:])
    _metaindex, pointers = [(footer.varint(), footer.varint()) for _ in range(2)]
    sizes = []
    for _last_key, value in block_entries(read_block(index, *pointers)):
        handle = Cursor(value)
        start, size = handle.varint(), handle.varint()
        entries = list(block_entries(read_block(index, start, size)))
        assert index.startswith(with_trailer(block(entries, restart_interval=16), compression=0), start)
        assert not index.startswith(with_trailer(block(entries, restart_interval=15)), start)
        sizes.append(size)
    assert len(sizes) == 2
    assert 2**18 <= sizes[0] < 2**18 + 100


def test_what_numpy_cannot_hold_is_listed(tf_checkpoints):
    bundle = open_tensor_bundle(tf_checkpoints["dtypes"])
    assert bundle.skipped == {"bfloat16": "numpy has no dtype bfloat16", "text": "numpy has no dtype string"}
    assert "text" not in bundle
    with pytest.raises(CheckpointError, match="text cannot be read: numpy has no dtype string"):
        bundle["text"]
    assert list(open_tensor_bundle(tf_checkpoints["objects"]).skipped) == ["_CHECKPOINTABLE_OBJECT_GRAPH"]


def test_partitioned_variables_are_joined(tf_checkpoints):
    """Under their own names and shapes, and read-only as the others. The indexes do have slices: 3 of each variable
    and of its two slots of Adam, and one with numbers of two bytes, of the whole of a dimension.
    """
    bundle = open_tensor_bundle(tf_checkpoints["partitioned"])
    assert {name: bundle.shapes[name] for name in gpt2_shapes(**TINY)} == gpt2_shapes(**TINY)
    with pytest.raises(ValueError, match="read-only"):
        bundle["model/wte"][0] = 0
    index = parse_table((tf_checkpoints["partitioned"] / "model.ckpt.index").read_bytes())
    assert sum(key.startswith(b"\0") for key in index) == 3 * (1 + 2) * len(gpt2_shapes(**TINY))
    index = parse_table((tf_checkpoints["tiled"] / "model.ckpt.index").read_bytes())
    assert any(key.endswith(b"\xc0\x64\xc0\xc8\x80\x7f") for key in index)


def test_damage_in_one_slice_is_found_there(tf_checkpoints, tmp_path):
    """The slice is named; the other variables are read."""
    folder = copy_of(tf_checkpoints["tiled"], tmp_path)
    data = folder / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[4 * 350] ^= 1  # the first slice has 300 values, the second 100
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match="is truncated or corrupt at model/wte, slice 2 of 3 .its checksum is "):
        open_tensor_bundle(folder)["model/wte"]
    content[4 * 350] ^= 1
    data.write_bytes(content)
    assert open_tensor_bundle(folder)["model/wte"].shape == (300, 4)


def test_tensorflow_reads_what_the_encoder_of_the_tests_writes(tensorflow, handmade_checkpoint):
    assert contents(open_tf_checkpoint(handmade_checkpoint)) == contents(open_tensor_bundle(handmade_checkpoint))


@pytest.mark.slow
def test_full_size_byte_for_byte(tensorflow, tmp_path):
    """124M with all its shapes and random values, in one data file and in three."""
    sizes = {"hidden_size": 768, "num_layers": 12, "vocab_size": 50257, "context_length": 1024}
    for num_devices in (1, 3):
        folder = write_with_saver(tensorflow, tmp_path / str(num_devices), sizes, num_devices=num_devices)
        ours, theirs = open_tensor_bundle(folder), open_tf_checkpoint(folder)
        assert facts(ours) == facts(theirs)
        assert sum(array.size for array in ours.values()) == 124439808
        for name in ours:
            assert ours[name].tobytes() == theirs[name].tobytes(), name
        shutil.rmtree(folder)


# What the mapping promises


def test_tensors_are_read_only_maps(handmade_checkpoint):
    array = open_tensor_bundle(handmade_checkpoint)["model/wte"]
    assert array.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_looking_reads_nothing(handmade_checkpoint, tmp_path):
    """Names, shapes and membership work while every tensor is damaged."""
    folder = copy_of(handmade_checkpoint, tmp_path)
    for path in folder.glob("*.data-*"):
        path.write_bytes(bytes(path.stat().st_size))
    bundle = open_tensor_bundle(folder)
    assert "model/wte" in bundle
    assert "model/wtf" not in bundle
    assert sorted(bundle) == list(bundle.shapes) == list(bundle.dtypes)
    assert len(bundle) == 4 + 12 * TINY["num_layers"]
    with pytest.raises(KeyError):
        bundle["model/wtf"]
    with pytest.raises(CheckpointError, match=r"data-0000\d-of-00002 is .* corrupt at model/wte \(its checksum is "):
        bundle["model/wte"]


def test_freed_pages_come_back(handmade_checkpoint):
    array = open_tensor_bundle(handmade_checkpoint)["model/wte"]
    before = array.copy()
    free_pages(array)
    assert np.array_equal(array, before)
    free_pages(before)  # no map: nothing happens


MEMORY_PROGRAM = f"""{PEAK}
import sys
from hf_gpt_scratch.conversion.readers.named_tensors import free_pages
from hf_gpt_scratch.conversion.readers.tensor_bundle import open_tensor_bundle
bundle = open_tensor_bundle(sys.argv[1])
before = peak()
for name in bundle:
    array = bundle[name]
    if sys.argv[2] != "verify":
        for start in range(0, len(array), 2**18):
            array[start : start + 2**18].sum()
            if sys.argv[2] == "free":
                free_pages(array)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux shows it")
def test_at_most_one_tensor_in_memory(tmp_path):
    """Six tensors of 16 MiB: reading all costs less than two of them, verifying or freeing pages a few MiB."""
    values = np.arange(2**22, dtype=np.float32)
    write_bundle(tmp_path / "model.ckpt", {f"v{i}": values for i in range(6)})
    growth = {
        mode: float(run_light(MEMORY_PROGRAM, str(tmp_path), mode).stdout) for mode in ("verify", "read", "free")
    }
    assert growth["verify"] < 6
    assert 12 < growth["read"] < 24
    assert growth["free"] < 8


def test_neither_torch_nor_transformers_nor_tensorflow_is_imported():
    program = "import sys\nfrom hf_gpt_scratch.conversion.readers import tensor_bundle, tf_checkpoint\n"
    program += "print(sorted({'torch', 'transformers', 'tensorflow'} & set(sys.modules)))"
    assert run_light(program).stdout.strip() == "[]"


# Indexes that contradict themselves, as TensorFlow never writes them


def sliced(*extents: tuple[int, int], length: int | None = None) -> dict[bytes, bytes]:
    """A variable of 2 values in slices, by start and length; `length` is what their own entries say."""
    slices = {slice_key(b"v", extent): entry((length or extent[1],)) for extent in extents}
    return {b"": header(), **slices, b"v": entry((2,), size=0, slices=tuple((extent,) for extent in extents))}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (table({}), "it has no header"),
        (table({b"": header(), b"v": entry((2,)) + b"\x0b"}), "wire type 3"),
        (table({b"": header(), b"v": entry((2,)) + b"\x12\xff"}), "reaches past its end"),
        (table({b"": header(), b"v": b"\x12\x02\x10\x01"}), "a number where a message should be"),
        (table({b"": header(), b"\xff": entry((2,))}), "can't decode byte 0xff"),
        (table({b"": header(2), b"v": entry((2,), shard_id=2)}), "v lies in data file 2 of 2"),
        (table({b"": header(2**60), b"v": entry((2,), shard_id=2**59)}), "No such file"),
        (table({b"": header(), b"v": entry((2,), size=12)}), r"v has 12 bytes and the shape \[2\]"),
        (table({b"": header(), b"v": entry((2**64 - 2, 2**64 - 1), size=8)}), "v has 8 bytes"),
        (table({b"": header(), b"v": entry((0, 2**62), size=0)}), "v has 0 bytes and the shape"),
        (
            table({b"": header(), b"v": entry((2,), offset=2**64 - 8)}),
            "has 8 bytes, its index says 18446744073709551616",
        ),
        (table({b"": header(), b"v": entry((1,) * 70, size=4)}), "has 8 bytes, its index says 4"),
        (table({b"": header(), b"v": entry((2,), slices=(((0, 2),),))}), "a slice of v is missing"),
        (table(sliced((0, 1))), r"the slices of v do not fill its shape \[2\]"),
        (table(sliced((0, 1), (0, 1))), "the slices of v do not fill"),
        (table(sliced((0, 2), (1, 1))), "the slices of v do not fill"),
        (table(sliced((1, 2))), "the slices of v do not fill"),
        (table(sliced((0, 2), length=1)), "a slice of v has another dtype or shape"),
        (table({b"": header(), b"v": entry((2,), slices=(((0, 2), (0, 1)),))}), "and a slice of 2 dimensions"),
        (table({b"": header(endianness=1), b"v": entry((2,))}), "big-endian"),
        (table({b"": header(min_consumer=2), b"v": entry((2,))}), "later version"),
        (table({b"": header(), b"v": entry((2,))}, compression=1), "compressed"),
    ],
)
def test_index_that_cannot_be(tmp_path, index, message):
    (tmp_path / "model.ckpt.index").write_bytes(index)
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(8))
    with pytest.raises(CheckpointError, match=message) as raised:
        open_tensor_bundle(tmp_path)
    assert "\n" not in str(raised.value)


def test_more_dimensions_than_numpy_has(tmp_path):
    (tmp_path / "model.ckpt.index").write_bytes(table({b"": header(), b"v": entry((1,) * 70, crc32c=0xA282EAD8)}))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(4))
    with pytest.raises(CheckpointError, match="corrupt at v"):
        open_tensor_bundle(tmp_path)["v"]


def test_unknown_dtype_is_listed(tmp_path):
    index = table({b"": header(), b"new": entry((2,), dtype=99, size=5), b"v": entry((1,), offset=5)})
    (tmp_path / "model.ckpt.index").write_bytes(index)
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(9))
    assert open_tensor_bundle(tmp_path).skipped == {"new": "numpy has no dtype number 99 of TensorFlow"}


def test_a_tensor_without_values_is_verified_too(tmp_path):
    write_bundle(tmp_path / "model.ckpt", {"none": np.zeros((0, 3), np.float32), "v": np.ones(2, np.float32)})
    assert open_tensor_bundle(tmp_path)["none"].shape == (0, 3)
    (tmp_path / "model.ckpt.index").write_bytes(table({b"": header(), b"none": entry((0, 3), size=0, crc32c=5)}))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(CheckpointError, match="corrupt at none"):
        open_tensor_bundle(tmp_path)["none"]


@pytest.mark.parametrize("byte", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("read_bytes", [120, 1 << 20], ids=["in parts", "at once"])
def test_a_damaged_tensor_is_refused_read_in_parts_or_at_once(tmp_path, monkeypatch, byte, read_bytes):
    monkeypatch.setattr(tensor_bundle, "READ_BYTES", read_bytes)
    values = np.arange(100, dtype=np.float32)
    write_bundle(tmp_path / "model.ckpt", {"v": values})
    assert np.array_equal(open_tensor_bundle(tmp_path)["v"], values)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[byte] ^= 1
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt at v"):
        open_tensor_bundle(tmp_path)["v"]


# Damage


def copy_of(folder: Path, where: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(folder, where / "copy"))


@pytest.fixture(params=["handmade", "training", "sharded", "tiled"])
def good(request: pytest.FixtureRequest) -> Path:
    """A good checkpoint; three are TensorFlow's, two with Adam's slots, one in three data files, one in slices."""
    if request.param == "handmade":
        return request.getfixturevalue("handmade_checkpoint")
    return request.getfixturevalue("tf_checkpoints")[request.param]


@pytest.fixture(params=list(READERS))
def reader(request: pytest.FixtureRequest) -> Callable:
    if request.param == "tensorflow":
        request.getfixturevalue("tensorflow")
    return READERS[request.param]


def outcome(reader: Callable, folder: Path, expected: dict) -> str:
    """Read all of a checkpoint: "refused" in one line, "identical", or "wrong"."""
    try:
        tensors = reader(folder / "model.ckpt")
        return "identical" if contents(tensors) == expected else "wrong"
    except CheckpointError as error:
        named_in_one_line = str(folder) in str(error) and "\n" not in str(error)
        return "refused" if named_in_one_line else f"badly refused: {error}"


def damaged(folder: Path, path: Path, changes: Iterator[bytes], reader: Callable, expected: dict) -> list[str]:
    """The outcome for every changed content of a file; the file is good again afterwards."""
    content = path.read_bytes()
    outcomes = []
    for changed in changes:
        path.write_bytes(changed)
        outcomes.append(outcome(reader, folder, expected))
    path.write_bytes(content)
    return outcomes


def flips(content: bytes, count: int, generator: random.Random) -> Iterator[bytes]:
    """`content` with one bit changed, each time another."""
    for bit in generator.sample(range(8 * len(content)), count):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def cuts(content: bytes, count: int, generator: random.Random) -> Iterator[bytes]:
    """`content` without its end: nothing at all, all but one byte, and others."""
    lengths = [0, len(content) - 1, *generator.sample(range(1, len(content) - 1), count - 2)]
    return (content[:length] for length in lengths)


def the_files(folder: Path) -> tuple[Path, list[Path]]:
    """The index, and the data files without those that are too small for a sample."""
    data = sorted(folder.glob("*.data-*"))
    return folder / "model.ckpt.index", [path for path in data if path.stat().st_size > 100]


def test_flipped_bits_in_the_data(good, reader, tmp_path):
    folder = copy_of(good, tmp_path)
    expected, generator = contents(reader(folder)), random.Random(2)
    _, data = the_files(folder)
    for path in data:
        changes = flips(path.read_bytes(), 150 // len(data), generator)
        assert set(damaged(folder, path, changes, reader, expected)) == {"refused"}


def test_flipped_bits_in_the_index(good, reader, tmp_path):
    folder = copy_of(good, tmp_path)
    expected, (index, _) = contents(reader(folder)), the_files(folder)
    outcomes = damaged(folder, index, flips(index.read_bytes(), 150, random.Random(3)), reader, expected)
    assert set(outcomes) == {"refused", "identical"}
    assert outcomes.count("refused") > 100


def test_cut_files(good, reader, tmp_path):
    folder = copy_of(good, tmp_path)
    expected, generator = contents(reader(folder)), random.Random(4)
    index, data = the_files(folder)
    for path in (index, data[0]):
        changes = cuts(path.read_bytes(), 30, generator)
        assert set(damaged(folder, path, changes, reader, expected)) == {"refused"}


def test_other_content(good, reader, tmp_path):
    """Appended bytes (of which TensorFlow ignores those of the data), pages of HTML, zeros, another file."""
    folder = copy_of(good, tmp_path)
    expected = contents(reader(folder))
    index, data = the_files(folder)
    html = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>"
    for path in (index, data[-1]):
        content = path.read_bytes()
        other = (data[-1] if path == index else index).read_bytes()
        changes = [html, bytes(len(content)), other, content[1:] + content[:1], html.ljust(len(content))]
        assert set(damaged(folder, path, changes, reader, expected)) == {"refused"}
        appended = damaged(folder, path, [content + b"\0", content + html], reader, expected)
        ignored = reader is open_tf_checkpoint and path != index
        assert set(appended) == {"identical" if ignored else "refused"}


def test_missing_files(good, reader, tmp_path):
    folder = copy_of(good, tmp_path)
    expected = contents(reader(folder))
    index, data = the_files(folder)
    data[0].rename(tmp_path / "away")
    assert outcome(reader, folder, expected) == "refused"
    index.unlink()
    with pytest.raises(FileNotFoundError, match="holds no TensorFlow checkpoint|there is no"):
        reader(folder / "model.ckpt")


def test_index_and_data_of_two_trainings(handmade_checkpoint, tmp_path):
    """Same names, same shapes, other values: nothing but the checksums can tell."""
    folder = copy_of(handmade_checkpoint, tmp_path)
    good = open_tensor_bundle(folder)
    other = {name: array + 1 for name, array in good.items()}
    write_bundle(tmp_path / "other" / "model.ckpt", other, num_shards=2)
    shutil.copy(tmp_path / "other" / "model.ckpt.index", folder)
    assert outcome(open_tensor_bundle, folder, {}) == "refused"


def test_data_files_exchanged(handmade_checkpoint, tmp_path):
    folder = copy_of(handmade_checkpoint, tmp_path)
    first, second = the_files(folder)[1]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert outcome(open_tensor_bundle, folder, {}) == "refused"


def test_file_cut_after_it_was_opened(handmade_checkpoint, tmp_path):
    folder = copy_of(handmade_checkpoint, tmp_path)
    bundle = open_tensor_bundle(folder)
    for path in the_files(folder)[1]:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"corrupt at model/wte \(\d+ bytes are missing\)"):
        bundle["model/wte"]


def test_folder_in_the_place_of_a_file(handmade_checkpoint, tmp_path):
    folder = copy_of(handmade_checkpoint, tmp_path)
    data = the_files(folder)[1][0]
    bundle = open_tensor_bundle(folder)
    data.unlink()
    data.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        contents(bundle)


def test_without_the_checksums_the_same_damage_is_silent(handmade_checkpoint, tmp_path, monkeypatch):
    """The control: the corpus of flipped bits is one that only a checksum sees."""
    folder = copy_of(handmade_checkpoint, tmp_path)
    expected, data = contents(open_tensor_bundle(folder)), the_files(folder)[1][0]
    monkeypatch.setattr(tensor_bundle, "verify_checksum", lambda path, entry: None)
    changes = flips(data.read_bytes(), 150, random.Random(2))
    assert damaged(folder, data, changes, open_tensor_bundle, expected) == ["wrong"] * 150


# Whatever a user names


@pytest.fixture
def folder(tmp_path):
    write_bundle(tmp_path / "124M" / "model.ckpt", {})
    (tmp_path / "124M" / "model.ckpt.meta").touch()
    return tmp_path / "124M"


def state(*names: str) -> str:
    lines = [f'all_model_checkpoint_paths: "{name}"\n' for name in names]
    return "".join([f'model_checkpoint_path: "{names[-1]}"\n', *lines])


NAMES = ["", "model.ckpt", "model.ckpt.index", "model.ckpt.meta", "model.ckpt.data-00000-of-00001"]


@pytest.mark.parametrize("name", NAMES)
def test_found_from_every_name(folder, name):
    assert find_checkpoint_prefix(folder / name) == folder / "model.ckpt"
    assert find_checkpoint_prefix(str(folder / name)) == folder / "model.ckpt"


@pytest.mark.parametrize("name", [*NAMES, "checkpoint"])
def test_found_from_every_name_with_a_checkpoint_file(folder, name):
    (folder / "checkpoint").write_text(state("model.ckpt"))
    assert find_checkpoint_prefix(folder / name) == folder / "model.ckpt"


def test_checkpoint_file_chooses_among_several(folder):
    write_bundle(folder / "model.ckpt-200", {})
    with pytest.raises(CheckpointError, match="holds 2 checkpoints: give one of them, such as .*model.ckpt-200.index"):
        find_checkpoint_prefix(folder)
    (folder / "checkpoint").write_text(state("model.ckpt", "model.ckpt-200"))
    assert find_checkpoint_prefix(folder) == folder / "model.ckpt-200"
    assert find_checkpoint_prefix(folder / "model.ckpt") == folder / "model.ckpt"


def test_checkpoint_file_with_a_sub_folder(folder):
    write_bundle(folder / "old" / "model.ckpt", {})
    (folder / "checkpoint").write_text(state("old/model.ckpt"))
    assert find_checkpoint_prefix(folder) == folder / "old" / "model.ckpt"


@pytest.mark.parametrize("elsewhere", ["/nowhere/model.ckpt", r"C:\\runs\\model.ckpt"])
def test_absolute_name_in_a_folder_that_was_moved(folder, elsewhere):
    (folder / "checkpoint").write_text(state(elsewhere))
    assert find_checkpoint_prefix(folder) == folder / "model.ckpt"


def test_absolute_name_of_another_folder(folder, tmp_path):
    write_bundle(tmp_path / "scratch" / "model.ckpt-7", {})
    (folder / "checkpoint").write_text(state(str(tmp_path / "scratch" / "model.ckpt-7")))
    assert find_checkpoint_prefix(folder) == tmp_path / "scratch" / "model.ckpt-7"


def test_prefix_that_is_called_checkpoint(tmp_path):
    write_bundle(tmp_path / "checkpoint", {})
    assert (
        find_checkpoint_prefix(tmp_path) == find_checkpoint_prefix(tmp_path / "checkpoint") == tmp_path / "checkpoint"
    )


@pytest.mark.parametrize("name", ["model.ckpt-9", "model", "modle.ckpt.index", "124M"])
def test_nothing_there(folder, name):
    with pytest.raises(FileNotFoundError, match="there is no .*index: give the folder") as raised:
        find_checkpoint_prefix(folder / name)
    assert "\n" not in str(raised.value)


def test_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no TensorFlow checkpoint"):
        find_checkpoint_prefix(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404 not found</html>", b"\xff\xfe\x00", b'model_checkpoint_path: "', b"{}"]
)
def test_checkpoint_file_that_is_none(folder, content):
    (folder / "checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError, match="names no checkpoint: give the .index file instead"):
        find_checkpoint_prefix(folder)


def test_checkpoint_file_that_names_nothing(folder):
    (folder / "checkpoint").write_text(state("model.ckpt-8"))
    with pytest.raises(CheckpointError, match="names 'model.ckpt-8', which is not there"):
        find_checkpoint_prefix(folder)

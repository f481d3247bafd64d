"""Proves that a checkpoint is found from whatever a user names, and that a wrong name ends in one line."""

import pytest

from hf_gpt_scratch.conversion.readers.tf_paths import CheckpointError, find_checkpoint_prefix
from tests.conversion.bundle_writer import write_bundle


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

"""Proves that a run says what it runs on: the versions that are installed, the device by name."""

from importlib.metadata import version

import torch

from hf_gpt_scratch.environment import KEY_PACKAGES, as_line, describe_device, key_versions


def test_versions_are_those_installed() -> None:
    versions = key_versions()
    assert versions["transformers"] == version("transformers")
    assert list(versions) == ["python", *KEY_PACKAGES]
    assert as_line(versions).startswith(f"python {versions['python']}, torch {torch.__version__}")


def test_cpu_is_named_with_its_threads() -> None:
    assert describe_device(torch.device("cpu")) == f"cpu ({torch.get_num_threads()} threads)"
    assert describe_device(torch.device("meta")) == "meta"

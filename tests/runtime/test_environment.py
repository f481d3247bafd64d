"""Proves that a run says what it runs on: the versions that are installed, the device by name, the memory it took."""

from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch

from hf_gpt_scratch.runtime.environment import KEY_PACKAGES, as_line, describe_device, key_versions, peak_memory


def test_versions_are_those_installed() -> None:
    versions = key_versions()
    assert versions["transformers"] == version("transformers")
    assert list(versions) == ["python", *KEY_PACKAGES]
    assert as_line(versions).startswith(f"python {versions['python']}, torch {version('torch')}")


def test_cpu_is_named_with_its_threads() -> None:
    assert describe_device(torch.device("cpu")) == f"cpu ({torch.get_num_threads()} threads)"
    assert describe_device(torch.device("meta")) == "meta"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux keeps the peak there")
def test_peak_memory_remembers_what_was_freed() -> None:
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(100_000_000)
    during = peak_memory(torch.device("cpu"))
    del block
    resident = psutil.Process().memory_info().rss
    assert peak_memory(torch.device("cpu")) == pytest.approx(during, rel=0.01)  # the kernel counts in batches
    assert during - resident > 300_000_000
    assert during >= before

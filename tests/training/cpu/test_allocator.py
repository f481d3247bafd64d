"""Proves that freed memory is kept or given back as asked for, by what the system counts as a process's own."""

import platform
import subprocess
import sys

import pytest


FREEING = """
import sys, torch
from hf_gpt_scratch.training import allocator
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
calls = {
    "keep": allocator.keep_freed_memory,
    "return": allocator.return_freed_memory,
    "keep_after_step": lambda: allocator.keep_freed_memory_after_step(optimizer),
    "step": optimizer.step,
}
for name in sys.argv[1].split():
    calls[name]()
large = torch.ones(31 << 18)
del large  # left alone, glibc takes pieces of up to that size, 31 MiB, from its heap from then on
pieces = [(torch.ones(int(sys.argv[2]) << 18), torch.ones(1 << 17)) for _ in range(5)]
between = [small for _, small in pieces] if sys.argv[3] == "True" else []  # 0.5 MiB each, between the others
del pieces
status = open("/proc/self/status").read()
peak, now = (int(status.partition(name + ":")[2].split()[0]) for name in ("VmHWM", "VmRSS"))
print((peak - now) // 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, which keeps what it likes")
@pytest.mark.parametrize(
    ("calls", "size", "between", "is_kept"),
    [
        ("", 30, True, True),
        ("keep", 15, False, True),
        ("keep", 17, True, False),
        ("keep", 64, True, False),
        ("return", 30, True, False),
        ("keep return", 30, True, False),
        ("return keep", 15, False, True),
        ("keep_after_step", 30, True, False),
        ("keep_after_step step", 15, False, True),
    ],
)
def test_what_becomes_of_freed_memory(calls, size, between, is_kept):
    """Five pieces of so many MiB are freed; left alone, glibc keeps those between others."""
    command = [sys.executable, "-c", FREEING, calls, str(size), str(between)]
    given_back = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert given_back < 2 * size if is_kept else given_back > 4 * size

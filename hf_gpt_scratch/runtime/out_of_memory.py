"""Out-of-memory errors: told from other errors, and reported in one line."""

import errno
import re


# What PyTorch says of a CPU's memory, of sizes beyond any, and of a GPU's.
PHRASES = ("can't allocate memory", "Storage size calculation overflowed", "out of memory", "std::bad_alloc")
# What the system says, in the words of whichever library was told: of memory, of a file or a library mapped into it.
SYSTEM_PHRASES = ("annot allocate memory", "failed to map segment")
ADVICE = "turn down the batch, the length of the texts or the size of the model"


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, of a CPU or a GPU."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    phrases = (*SYSTEM_PHRASES, *(PHRASES if isinstance(error, RuntimeError) else ()))
    return not isinstance(error, ValueError) and any(phrase in str(error) for phrase in phrases)


def out_of_memory_line(error: BaseException, advice: str = ADVICE) -> str:
    """Write one line on an error that `is_out_of_memory`: what was asked for, what there is, and what to do."""
    asked = ""
    if found := re.search(r"(?:allocate|mmap) (([\d.]+) ?([KMGTPE]?i?[Bb](?:ytes)?))\b", str(error)):
        size = f"{float(found[2]) / 1e9:,.2f} GB" if found[3].lower() == "bytes" else found[1]
        asked = f"{size} more asked for, "
    return f"out of memory: {asked}{free_memory(error)}: {advice}"


def free_memory(error: BaseException) -> str:
    """Say how much memory is free on the device that ran out of it."""
    try:
        import psutil
    except (ImportError, MemoryError):  # not even the memory for that
        return "next to nothing is free"
    if "CUDA" in str(error):
        import torch

        return f"{torch.cuda.mem_get_info()[0] / 1e9:,.2f} GB are free on the GPU"
    process, available = psutil.Process(), psutil.virtual_memory().available
    limit = process.rlimit(psutil.RLIMIT_AS)[0] if hasattr(process, "rlimit") else -1
    if limit >= 0 and (left := max(0, limit - process.memory_info().vms)) < available:
        return f"{left / 1e9:,.2f} GB are left of the {limit / 1e9:,.2f} GB that this process may have (ulimit -v)"
    return f"{available / 1e9:,.2f} GB are free"

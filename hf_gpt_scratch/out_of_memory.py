"""Memory that is not there: told from other errors, and said in one line."""

import re


# What PyTorch says of a CPU's memory, of sizes beyond any, and of a GPU's.
PHRASES = ("can't allocate memory", "Storage size calculation overflowed", "out of memory", "std::bad_alloc")
ADVICE = "turn down the batch, the length of the texts or the size of the model"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for that is not there, of a CPU or a GPU."""
    is_runtime = isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)
    return isinstance(error, MemoryError) or is_runtime


def out_of_memory_line(error: BaseException, advice: str = ADVICE) -> str:
    """Write one line: what was asked for, what there is, and what to do.

    Args:
        error: one that `is_out_of_memory`.
        advice: what to do.
    """
    asked = re.search(r"allocate ([\d.]+ ?[KMGTPE]?i?[Bb](?:ytes)?)\b", str(error))
    return f"out of memory: {f'{readable(asked[1])} more asked for, ' if asked else ''}{free(error)}: {advice}"


def readable(size: str) -> str:
    """Write a size such as "16000000000 bytes" in GB; others stay as they are."""
    number, unit = re.fullmatch(r"([\d.]+) ?(\w+)", size).groups()
    return f"{float(number) / 1e9:,.2f} GB" if unit.lower() == "bytes" else size


def free(error: BaseException) -> str:
    """Say what is free where it was asked for."""
    import psutil

    if "CUDA" in str(error):
        import torch

        return f"{torch.cuda.mem_get_info()[0] / 1e9:,.2f} GB are free on the GPU"
    return f"{psutil.virtual_memory().available / 1e9:,.2f} GB are free"

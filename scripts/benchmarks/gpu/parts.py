"""The process of a part: does its items one after the other, whatever fails in one.

A part is a module of this package with a function `items(plan, folder)`, which returns its items by name, each a
function without arguments that returns an `Outcome`, or yields one again and again, as it gets further: at the time
limit, the last one is what there is. An error of one of them is recorded. After an error that leaves
the device unusable, or killed the process, the part is started again and goes on with the next item.
"""

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from .plan import Plan
from .record import DONE, FAILED, MISSING, UNFINISHED, MissingError, Outcome, Record


Item = Callable[[], Outcome | Iterator[Outcome]]
Items = Mapping[str, Item]
BROKEN = 3  # the exit code of a process whose device no longer works
LONGEST_LINE = 300


def run_items(record: Record, items: Items, clean_up: Callable[[], None]) -> None:
    """Do the items that are not in the record yet; `clean_up` is called after each, and may raise to end the part."""
    for name, item in items.items():
        if name in record.items:
            continue
        record.begin(name)
        started, outcome = time.perf_counter(), Outcome([])
        try:
            found = item()
            for outcome in [found] if isinstance(found, Outcome) else found:
                record.end(name, UNFINISHED, outcome, time.perf_counter() - started)
            result = DONE
        except MissingError as error:
            result, outcome = MISSING, replace(outcome, lines=[str(error), *outcome.lines])
        except Exception as error:
            result, outcome = FAILED, replace(outcome, lines=[last_line(error), *outcome.lines])
        record.end(name, result, outcome, time.perf_counter() - started)
        clean_up()


def last_line(error: BaseException) -> str:
    """Return the type of an error and the last line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:LONGEST_LINE]


def free_device(device: str) -> None:
    """Forget what an item has left: memory and compiled code; leave the process if the device has broken."""
    import torch

    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            sys.exit(BROKEN)


def main(part: str, folder: str, plan_json: str) -> None:
    """Run a part as the command starts it."""
    from hf_gpt_scratch.runtime.environment import describe_device, key_versions

    values = json.loads(plan_json)
    plan = Plan(**values | {"decode_rows": tuple(values["decode_rows"])})
    record = Record(Path(folder), part)
    import torch

    record.note(machine={"device": describe_device(torch.device(plan.device)), "versions": key_versions()})
    work = Path(folder) / "work"
    items = importlib.import_module(f"{__package__}.{part}").items(plan, work)
    run_items(record, items, lambda: free_device(plan.device))


if __name__ == "__main__":
    main(*sys.argv[1:])

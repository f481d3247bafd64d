"""The table of a run on a GPU: a line for each item, and one for each limit."""

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.benchmarks.measuring import format_limits

from .record import DONE, MISSING


def summary_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of all parts; one that was never started says so."""
    machine = next((record["machine"] for record in records if "machine" in record), None)
    lines = []
    if machine:
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        lines = [machine["device"], versions]
    for record in records:
        lines += ["", count_line(record)]
        for name, item in record["items"].items():
            seconds = "" if item["seconds"] is None else f"{item['seconds']:.1f} s"
            first, *more = item["lines"] or [""]
            lines.append(f"  {name:44} {item['result']:13} {seconds:>8}  {first}".rstrip())
            lines += [f"    {line}" for line in [*more, *format_limits(item["limits"])]]
    return lines


def count_line(record: dict[str, Any]) -> str:
    """Say how many items of a part have which result, and how it ended."""
    results = [item["result"] for item in record["items"].values()]
    counts = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
    ended = f"ended {record['ended']} after {record['seconds']:.0f} s" if "ended" in record else "not started"
    return f"{record['part']}: {counts or 'nothing'}; {ended}"


def unfinished(record: dict[str, Any]) -> Iterator[str]:
    """Yield the items that failed or were cut off, and the part itself if it did not reach its end."""
    for name, item in record["items"].items():
        if item["result"] not in (DONE, MISSING):
            yield f"{record['part']}, {name}"
    if record.get("ended") != "at its end":
        yield record["part"]

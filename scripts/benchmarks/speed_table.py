"""Markdown tables of speed from the JSON files that scripts/benchmark.py wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_gpt_scratch.runtime.files import read_json, write_file

from .measuring import format_spread, profile_rows


MARKS = "<!-- speed -->", "<!-- end of speed -->"


def speed_tables(folder: Path) -> str:
    """Return Markdown of all reports in a folder, by file name: limits, every candidate, profiles.

    Raises:
        ValueError: a file of the folder is not a report.
    """
    reports = [read_report(path) for path in sorted(folder.glob("*.json"))]
    parts = [
        table(
            ("what", "limit", "reached, min / median / max", "met"),
            [row for report in reports for row in limit_rows(report)],
        ),
        "<details><summary>Every candidate</summary>",
        table(
            ("candidate", "its time / ours, min / median / max", "its memory / ours", "of the machine's limit"),
            [row for report in reports for row in comparison_rows(report)],
        ),
        "</details>",
    ]
    if sweeps := [row for report in reports for row in sweep_rows(report)]:
        head = ("vocabulary, layers x width, context, batch, rate, dropout", "bits per byte", "/ best", "epochs")
        parts += ["### What the minutes choose", table(head, sweeps)]
    if profiles := [row for report in reports for row in profile_table_rows(report)]:
        head = ("operator", "its seconds", "part of the whole", "calls")
        parts += ["<details><summary>Where the time goes</summary>", table(head, profiles), "</details>"]
    return "\n\n".join(parts)


def write_tables(folder: Path, readme: Path) -> None:
    """Put the tables between the two marks of a Markdown file.

    Raises:
        ValueError: the file has no such marks; or see `speed_tables`.
    """
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise ValueError(f"{readme} has no lines {MARKS[0]} and {MARKS[1]}: add them where the tables belong")
    write_file(readme, f"{before}{start}\n{speed_tables(folder)}\n{end}{after}")


def read_report(path: Path) -> dict[str, Any]:
    """Read the report of a run.

    Raises:
        ValueError: the file is not one.
    """
    report = read_json(path)
    if "machine" not in report:
        raise ValueError(f"{path} is not a report of scripts/benchmark.py")
    return report


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def title_row(report: dict[str, Any]) -> list[str]:
    """Return a row of four cells: the setting, the date and the machine."""
    machine = report["machine"]
    where = f"{machine['date']}, {machine['threads']} threads, {machine['processor']}"
    return [f"**{report['benchmark']}: {report['setting']}** ({where})", *[""] * 3]


def limit_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the limits of a report, below a row with its title."""
    limits = report.get("limits", [])
    rows = [
        [
            one["text"],
            f"{one['bound']} {one['limit']}",
            format_spread(one["reached"]),
            "yes" if one["met"] else "**no**",
        ]
        for one in limits
    ]
    return [title_row(report), *rows] if rows else []


def comparison_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the candidates of a report, below a row with its title; `fraction` is the part of the machine's limit."""
    rows = [
        [
            one["peer"],
            f"{format_spread(one['times'])} ({one['figure']})",
            f"{one['memory']:.2f}",
            f"{one['fraction']:.2f}" if "fraction" in one else "",
        ]
        for one in report.get("comparisons", [])
    ]
    return [title_row(report), *rows] if rows else []


def sweep_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the settings of a sweep, best first, below a row with its title."""
    if report["benchmark"] != "sweep":
        return []
    details = {name: samples[0]["details"] for name, samples in report["candidates"].items()}
    losses = {name: one["bits per byte"] for name, one in details.items()}
    rows = [
        [name, f"{losses[name]:.3f}", f"{losses[name] / min(losses.values()):.3f}", f"{details[name]['epochs']:.1f}"]
        for name in sorted(losses, key=losses.__getitem__)
    ]
    return [title_row(report), *rows]


def profile_table_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the profile of a report, below a row with its title."""
    if "profile" not in report:
        return []
    profile = report["profile"]
    rows = [
        [name, f"{seconds:.3f}", f"{seconds / profile['wall']:.1%}", "" if calls is None else str(calls)]
        for name, seconds, calls in profile_rows(profile)
    ]
    bound = [profile["bound"]["text"], "", f"{profile['bound']['value']:.2f}", ""]
    return [title_row(report), *rows, bound]

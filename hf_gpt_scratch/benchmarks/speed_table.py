"""README's table of speed, made from the JSON files that scripts/benchmark.py wrote."""

import json
from pathlib import Path
from typing import Any

from .measuring import format_spread


HEAD = "| what | peer | its time / ours, min / median / max | its memory / ours | measured |\n|---|---|---|---|---|"


def speed_table(folder: Path) -> str:
    """A Markdown table with a row for each peer of each report in a folder, files in the order of their names.

    Raises:
        ValueError: a file of the folder is no report.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "machine" not in report:
            raise ValueError(f"{path} is no report of scripts/benchmark.py")
        rows += [table_row(report, one) for one in report.get("comparisons", [])]
    return "\n".join([HEAD, *rows])


def table_row(report: dict[str, Any], comparison: dict[str, Any]) -> str:
    """What one peer took, as a row."""
    machine = report["machine"]
    cells = [
        f"{report['benchmark']}: {report['setting']}",
        comparison["peer"],
        f"{format_spread(comparison['times'])} ({comparison['figure']})",
        f"{comparison['memory']:.2f}",
        f"{machine['date']}, {machine['threads']} threads, {machine['processor']}",
    ]
    return f"| {' | '.join(cells)} |"

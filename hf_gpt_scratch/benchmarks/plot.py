"""Bars of how many times as long as ours each peer takes."""

from pathlib import Path
from typing import Any


def plot_comparisons(report: dict[str, Any], path: Path) -> None:
    """Draw the medians as bars and minimum to maximum as lines, into a PNG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = report["comparisons"]
    lowest, median, highest = zip(*(row["times"] for row in rows), strict=True)
    errors = [
        [middle - low for middle, low in zip(median, lowest, strict=True)],
        [high - middle for middle, high in zip(median, highest, strict=True)],
    ]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh([row["peer"] for row in rows], median, xerr=errors, color="tab:blue", ecolor="black", capsize=3)
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel(f"{rows[0]['figure']} time / ours (right of the line: ours is faster)")
        axes.set_title(f"{report['benchmark']}: {report['setting']}")
        figure.savefig(path, dpi=150)

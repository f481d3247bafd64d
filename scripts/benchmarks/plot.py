"""Bars of how many times as long as ours each peer takes, and lines of how cost grows with the data."""

from pathlib import Path
from typing import Any


def plot_comparisons(report: dict[str, Any], path: Path) -> None:
    """Draw the medians as bars and minimum to maximum as lines, into a PNG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from hf_gpt_scratch.plots import save_figure

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
        save_figure(figure, path.with_suffix(""), ("png",))


def plot_growth(report: dict[str, Any], path: Path) -> None:
    """Draw time per unit and peak memory over the amount of data, median and minimum to maximum, into a PNG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from hf_gpt_scratch.plots import save_figure

    growth = report["growth"]
    labels = {"wall": f"wall seconds for {growth['unit']}", "memory": "peak memory, MiB"}
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        for axes, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
            lowest, median, highest = zip(*(point[name] for point in growth["points"]), strict=True)
            axes.plot(growth["factors"], median, marker="o")
            axes.fill_between(growth["factors"], lowest, highest, alpha=0.3)
            axes.set_xscale("log")
            axes.set_xticks(growth["factors"], [f"{factor} x" for factor in growth["factors"]])
            axes.set_ylim(min(0, *lowest), 1.3 * max(highest))
            axes.set_xlabel("data")
            axes.set_ylabel(label)
        figure.suptitle(f"{report['benchmark']}: {report['setting']}")
        save_figure(figure, path.with_suffix(""), ("png",))

"""Candidates measured in turn, ratios taken within a round, limits judged.

This module imports little: candidates of the conversion import it, and their memory is measured.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Measurement:
    """The cost of a sample: seconds of CPU, seconds of wall time, peak memory in MiB; and its details."""

    cpu: float
    wall: float
    memory: float
    details: dict[str, Any] = field(default_factory=dict)  # such as the loss, to show that all did the same work


Results = dict[str, list[Measurement]]
Key = TypeVar("Key")


# Linux counts what the parent holds when it starts a process as memory of that process: the parent must be small.
WATCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - start
process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for; Popen must not do it again
print(json.dumps([process.returncode, usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024]))
"""


def measure(command: Sequence[Any]) -> Measurement:
    """Run a command in a process of its own, without showing its output.

    Raises:
        ValueError: it fails; with the last line that it printed on stderr.
    """
    # Compiled modules are kept, as they are where this package is installed.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    watch = [sys.executable, "-I", "-S", "-c", WATCH, *command]
    process = subprocess.run(watch, capture_output=True, text=True, errors="replace", env=environment)
    last = process.stderr.strip().rpartition("\n")[2]
    if process.returncode:  # the command could not be started
        raise ValueError(f"{command[0]} cannot be measured: {last}")
    exit_code, cpu, wall, memory = json.loads(process.stdout)
    if exit_code:
        raise ValueError(f"{command[0]} failed with exit code {exit_code}: {last}")
    return Measurement(cpu, wall, memory)


def interleave(samplers: Mapping[Key, Callable[[], Measurement]], rounds: int) -> dict[Key, list[Measurement]]:
    """Return the samples of `in_rounds`, all of them."""
    return list(in_rounds(samplers, rounds))[-1]


def in_rounds(
    samplers: Mapping[Key, Callable[[], Measurement]], rounds: int
) -> Iterator[dict[Key, list[Measurement]]]:
    """Take a sample of every candidate in turn, `rounds` times.

    Each round begins with another candidate, because the place in the order may matter.

    Yields:
        The samples so far, after each round.

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"--rounds {rounds} measures nothing: give 1 or more")
    results: dict[Key, list[Measurement]] = {name: [] for name in samplers}
    names = list(samplers)
    for _ in range(rounds):
        for name in names:
            results[name].append(samplers[name]())
        names = names[1:] + names[:1]
        yield results


def describe_machine(packages: Iterable[str], threads: int | None = None) -> dict[str, Any]:
    """Return date, processor, threads, memory, load of the last minute, and versions, without importing packages."""
    from datetime import datetime, timezone
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": sys.version.split()[0]}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": processor_name(),
        "threads": threads or len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "load": [os.getloadavg()[0]],
        "versions": versions,
    }


def processor_name() -> str:
    """Return the processor's name and widest vectors, which tell processors of one name apart; or its architecture."""
    with contextlib.suppress(OSError, KeyError):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            fields = {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}
        flags = fields["flags"].split()
        vectors = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
        return f"{fields['model name'].strip()}, {vectors}"
    return os.uname().machine


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum."""
    from statistics import median  # imported here, since it takes a noticeable part of a candidate's start

    return min(values), median(values), max(values)


def ratios(results: Results, figure: str, numerator: str, denominator: str) -> list[float]:
    """Return a figure of `Measurement` of one candidate over that of another, round by round."""
    pairs = zip(results[numerator], results[denominator], strict=True)
    return [getattr(one, figure) / getattr(other, figure) for one, other in pairs]


def describe_limit(text: str, values: Sequence[float], bound: str, limit: float) -> dict[str, Any]:
    """Return the spread of the values, and if their median meets the limit; `bound` is "at least" or "at most"."""
    reached = spread(values)
    met = reached[1] >= limit if bound == "at least" else reached[1] <= limit
    return {"text": text, "reached": reached, "bound": bound, "limit": limit, "met": met}


def build_report(name: str, setting: str, machine: dict[str, Any], results: Results, **more: Any) -> dict[str, Any]:
    """Return all figures of a run, ready for JSON.

    Args:
        name: of the benchmark, such as "train".
        setting: the work, such as "GPT-2 124M, 2 x 256 tokens".
        machine: of `describe_machine`, before the run.
        results: the samples.
        more: further entries, such as `limits` and `comparisons`.
    """
    machine["load"].append(os.getloadavg()[0])
    candidates = {one: [vars(sample) for sample in samples] for one, samples in results.items()}
    return {"benchmark": name, "setting": setting, "machine": machine, "candidates": candidates, **more}


def compare(results: Results, figure: str, ours: str) -> list[dict[str, Any]]:
    """Return the time and the peak memory of every other candidate over ours."""
    return [
        {
            "peer": peer,
            "figure": figure,
            "times": spread(ratios(results, figure, peer, ours)),
            "memory": ratios(results, "memory", peer, ours)[-1],
        }
        for peer in results
        if peer != ours
    ]


def format_machine(machine: dict[str, Any]) -> list[str]:
    """Describe the machine in two lines."""
    load = machine["load"]
    return [
        f"{machine['processor']}, {machine['threads']} threads, {machine['memory_gib']} GiB, {machine['date']}, "
        f"load {load[0]:.1f} before and {load[-1]:.1f} after",
        ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
    ]


def format_candidates(candidates: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a table of the cost of every candidate, with the details of its last sample."""
    columns = "min / median / max"
    width = max(18, *map(len, candidates))
    lines = [
        f"{'':{width}}{columns:>24}{columns:>24}{'peak':>10}",
        f"{'':{width}}{'CPU s':>24}{'wall s':>24}{'MiB':>10}",
    ]
    for name, samples in candidates.items():
        cpu, wall = (format_spread(spread([one[figure] for one in samples])) for figure in ("cpu", "wall"))
        memory = max(one["memory"] for one in samples)
        details = "  ".join(f"{key} {value}" for key, value in samples[-1]["details"].items())
        lines.append(f"{name:{width}}{cpu:>24}{wall:>24}{memory:>10.0f}  {details}".rstrip())
    return lines


def format_limits(limits: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each limit, with the reached values and the verdict."""
    return [
        f"{limit['text']:34} {format_spread(limit['reached']):>24}  {limit['bound']} {limit['limit']:<6}"
        f"{'met' if limit['met'] else 'NOT MET'}"
        for limit in limits
    ]


def format_report(report: dict[str, Any]) -> list[str]:
    """Return the lines to print: setting, machine, candidates, comparisons, limits."""
    lines = [f"{report['benchmark']}: {report['setting']}", *format_machine(report["machine"])]
    lines += format_candidates(report["candidates"])
    for one in report.get("comparisons", []):
        times = format_spread(one["times"])
        lines.append(f"{one['figure']} time of {one['peer']} / ours: {times}; memory {one['memory']:.2f}")
    if "growth" in report:
        lines += format_growth(report["growth"])
    if "profile" in report:
        lines += format_profile(report["profile"])
    lines += [f"left out: {line}" for line in report.get("left_out", [])]
    return lines + format_limits(report.get("limits", []))


def format_growth(growth: dict[str, Any]) -> list[str]:
    """Return a line for each amount of data: the cost of a unit, without the start."""
    return [
        f"{factor} x: {format_spread(point['wall'], 4)} wall s and {format_spread(point['cpu'], 4)} CPU s "
        f"for {growth['unit']}, {format_spread(point['memory'], 0)} MiB"
        for factor, point in zip(growth["factors"], growth["points"], strict=True)
    ]


def profile_rows(profile: dict[str, Any]) -> list[tuple[str, float, int | None]]:
    """Return name, seconds and calls: of the sum of the products, the longest operators, the rest."""
    operators, others, wall = profile["operators"], profile["others"], profile["wall"]
    rest = wall - others - sum(seconds for _, seconds, _ in operators)
    last = [("all other operators", others, None), ("outside of operators", rest, None)]
    if forward := profile.get("forward"):  # older records do not part it
        last.append(("of which in the model's forward", forward, None))
    return [("matrix products together", profile["products"], None), *map(tuple, operators), *last]


def format_profile(profile: dict[str, Any]) -> list[str]:
    """Return a line for each operator, and one for the most that could be reached."""
    lines = [
        f"{name:60} {seconds:8.3f} s {seconds / profile['wall']:6.1%}  {'' if calls is None else f'{calls} calls'}"
        for name, seconds, calls in profile_rows(profile)
    ]
    return [*map(str.rstrip, lines), f"{profile['bound']['text']}: {profile['bound']['value']:.2f}"]


def format_spread(values: Sequence[float], digits: int = 2) -> str:
    """Write minimum, median and maximum."""
    return " / ".join(f"{value:.{digits}f}" for value in values)

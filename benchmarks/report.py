"""Describe the machine, print the table, write the JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import tazza
from benchmarks.compare import versions
from benchmarks.harness import Area, Missing, Verdict
from tazza.hot import COMPILED

__all__ = ["BUILD", "machine", "print_area", "write_json"]

BUILD = "compiled" if COMPILED else "uncompiled"
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "tazza": tazza.__version__,
        "build": BUILD,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "packages": versions(),
    }


def print_area(area: Area, results: Mapping[str, Sequence[float]], verdicts: Sequence[Verdict]) -> None:
    """Print one line per case (median and quartiles), per amount and per budget."""
    for case, seconds in results.items():
        low, middle, high = _quartiles(seconds)
        print(f"  {case:<42} {_time(middle):>10}   [{_time(low)} .. {_time(high)}]   {BUILD}")
    for name, amount in area.amounts.items():
        print(f"  {name:<42} {amount:>10.6g}   {BUILD}")
    for absent in area.cases:
        if isinstance(absent, Missing):
            print(f"  {absent.id:<42} {'-':>10}   {absent.reason}")
    for item in verdicts:
        budget, ratio = item.budget, "-" if item.ratio is None else f"{item.ratio:.3f}"
        pair = f"{budget.case} / {budget.peer}"
        print(f"    {pair:<74} {ratio:>8} (at most {budget.at_most:.3g})  {item.verdict}  {BUILD}")


def write_json(
    path: Path, results: Mapping[str, Sequence[float]], amounts: Mapping[str, float], verdicts: Sequence[Verdict]
) -> None:
    """Write machine, medians in seconds per operation, amounts and verdicts; the file appears whole or not at all."""
    document = {
        "machine": machine(),
        "seconds": {case: median(values) for case, values in results.items()},
        "amounts": dict(amounts),
        "budgets": [
            {
                "case": v.budget.case,
                "peer": v.budget.peer,
                "ratio": v.ratio,
                "at_most": v.budget.at_most,
                "gated": v.budget.gated,
                "verdict": v.verdict,
            }
            for v in verdicts
        ],
    }
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    draft.replace(path)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], median(ordered), ordered[len(ordered) * 3 // 4]


def _time(seconds: float) -> str:
    scale, unit = next(((s, u) for s, u in _UNITS if seconds >= s), _UNITS[-1])
    return f"{seconds / scale:.4g} {unit}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()

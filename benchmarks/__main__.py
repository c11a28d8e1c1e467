"""``python -m benchmarks [area ...] [--json FILE] [--rounds N] [--check]``: run the areas and print the ratios."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from benchmarks.harness import Area, Case, Verdict, judge, measure
from benchmarks.report import BUILD, machine, print_area, write_json

AREAS = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen areas; return 1 where ``--check`` is given and a gated budget was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ratios against what one would use instead."
    )
    parser.add_argument("areas", nargs="*", help=f"any of: {', '.join(AREAS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, medians and verdicts")
    parser.add_argument("--rounds", type=int, default=25, help="samples per case (default: 25)")
    parser.add_argument("--sample-ms", type=float, default=10.0, help="length of a sample (default: 10)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gated budget is missed")
    options = parser.parse_args(arguments)
    if unknown := set(options.areas) - set(AREAS):
        parser.error(f"unknown area: {', '.join(sorted(unknown))}; choose from {', '.join(AREAS)}")
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    results: dict[str, list[float]] = {}
    amounts: dict[str, float] = {}
    verdicts: list[Verdict] = []
    for name in options.areas or AREAS:
        print(f"\n{name} ({BUILD})")
        area = cast(Callable[[], Area], importlib.import_module(f"benchmarks.bench_{name}").area)()
        cases = [case for case in area.cases if isinstance(case, Case)]
        with area.scope:
            seen = measure(cases, rounds=options.rounds, sample_seconds=options.sample_ms / 1000)
        judged = judge(area.budgets, seen | {name: [amount] for name, amount in area.amounts.items()})
        print_area(area, seen, judged)
        results |= seen
        amounts |= area.amounts
        verdicts += judged
    if options.json:
        write_json(options.json, results, amounts, verdicts)
    return int(options.check and any(v.verdict == "MISSED" for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())

"""Draws against NumPy's own Philox: large, tiny, and the distributions that tazza computes itself."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Area, Budget, Case
from tazza.core.generator import Generator

LARGE, MIDDLE = 10**7, 10**6
THREADS = 2


def area() -> Area:
    """The budgets of `random`, and the ratios of the rest without a gate: they take a fixed number of words."""
    out = np.zeros(LARGE)
    one, more = Generator(1), Generator(1, threads=THREADS)
    everyone = {"numpy": np.random.Generator(np.random.Philox(1)), "tazza": one, f"tazza{THREADS}": more}
    statements = {
        "random.large": "g.random(out=out)",
        "random.float32": f"g.random({MIDDLE}, dtype=single)",
        "random.normal": f"g.standard_normal({MIDDLE})",
        "random.normal32": f"g.standard_normal({MIDDLE}, dtype=single)",
        "random.exponential": f"g.standard_exponential({MIDDLE})",
        "random.integers": f"g.integers(0, 100, {MIDDLE})",
        "random.permutation": f"g.permutation({MIDDLE})",
    }
    cases = [
        Case(f"{name}.{who}", statement, {"g": generator, "out": out, "single": np.float32})
        for name, statement in statements.items()
        for who, generator in everyone.items()
    ]
    cases += [
        Case(f"random.tiny.{who}", "random(10)", {"random": everyone[who].random})  # type: ignore[attr-defined]
        for who in ("numpy", "tazza")
    ]
    return Area(
        cases=cases,
        budgets=[
            Budget("random.large.tazza", "random.large.numpy", at_most=1.0),
            Budget(f"random.large.tazza{THREADS}", "random.large.numpy", at_most=0.65),
            Budget("random.tiny.tazza", "random.tiny.numpy", at_most=2.0),
            *(
                Budget(f"{name}.{who}", f"{name}.numpy", at_most=1.0, gated=False)
                for name in list(statements)[1:]
                for who in ("tazza", f"tazza{THREADS}")
            ),
        ],
    )

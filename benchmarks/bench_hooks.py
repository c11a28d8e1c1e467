"""What the instrumentation point costs while nobody listens.

The tests for a listener cannot be taken out of the code, so each operation is timed as it is and with its tests made
once more: the difference is what the tests cost. From Python a test costs more than in compiled code, so for a compiled
operation the ratio is an upper bound and only reported.
"""

from __future__ import annotations

import tazza as tz
from benchmarks.harness import Area, Budget, Case
from tazza.hot import COMPILED, point

TEST = "\nif point.listeners is not None:\n    pass"


def area() -> Area:
    """Cases of the operations that pass the instrumentation point."""
    context = tz.context("cpu")
    stream = context.new_stream()
    buffer, other = context.allocate(64), context.allocate(64)
    operations = {
        # statement, names, tests for a listener that it passes
        "allocate": ("allocate(1024)", {"allocate": context.allocate}, 2),
        "copy": ("copy(a, b)", {"copy": context.copy, "a": buffer, "b": other}, 1),
        "fill": ("fill(a, 0)", {"fill": context.fill, "a": buffer}, 1),
        "launch": ("launch(int)", {"launch": context.launch}, 1),
        "record": ("record().synchronize()", {"record": stream.record}, 2),
    }
    cases, budgets = [], []
    for name, (statement, names, tests) in operations.items():
        plain, twice = f"hooks.{name}.tazza", f"hooks.{name}.tested_twice"
        cases += [Case(plain, statement, names), Case(twice, statement + TEST * tests, {**names, "point": point})]
        budgets.append(Budget(twice, plain, at_most=1.02, gated=not (COMPILED and name == "allocate")))
    return Area(cases, budgets)

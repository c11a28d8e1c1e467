"""The table of the litmus programs: ``python -m tests.litmus.table`` writes it to ``docs/litmus.md``."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from tests.litmus.harness import Litmus, programs

__all__ = ["PAGE", "litmus_programs", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "litmus.md"

_HEAD = """# Litmus programs

The [execution model](design/0001-execution-model.md) in executable form. Each program is a few lines with the only
outcomes that its rule allows; `tests/litmus/` runs each on the CPU, on two halves of the CPU, and on one, two and eight
simulated devices under 20 seeds, with thread jitter; `tests/cuda/` runs those that are not of the CPU's inline stream
on emulated CUDA devices. "Held back" means behind a wait for a host event that has not happened yet.

Written by `python -m tests.litmus.table`; a test compares it with the programs.

| rule | program | what it does | allowed |
|---|---|---|---|
"""


def litmus_programs() -> list[Litmus]:
    """Every program, by rule and then in the order of its file."""
    for path in sorted(Path(__file__).parent.glob("test_rule_*.py")):
        importlib.import_module(f"tests.litmus.{path.stem}")
    return sorted(programs, key=lambda one: one.rule)


def page() -> str:
    """The text of the page."""
    rows = [
        f"| {one.rule} | {one.name} | {' '.join((inspect.getdoc(one.program) or '').split())} | {one.only} |"
        for one in litmus_programs()
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

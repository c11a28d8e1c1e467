"""What the fronts of `Dnn` share: how a choice is changed, and what is done where scratch memory is short."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tazza.dnn.library import Algorithm, Choice, Library, Plan
from tazza.dnn.state import DnnState, DnnStates
from tazza.errors import ArgumentError, OutOfMemoryError, UnsupportedError
from tazza.util.text import parse_nbytes

__all__ = ["changed", "smaller"]

_ALGORITHMS = ("heuristic", "measure", "deterministic")


def changed(
    choice: Choice, algorithm: Algorithm | None, max_workspace: int | str | None, seconds: float | None
) -> Choice:
    """Return a choice with what is not None changed.

    Raises:
        ArgumentError: a value is not possible.
    """
    if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < math.inf):
        raise ArgumentError.of("seconds", seconds, "seconds, 0 or more")
    if algorithm is not None and algorithm not in _ALGORITHMS:
        raise ArgumentError.of("algorithm", algorithm, f"one of {', '.join(_ALGORITHMS)}")
    if max_workspace is not None:
        choice = replace(choice, max_workspace=parse_nbytes(max_workspace, argument="max_workspace"))
    return replace(
        choice,
        algorithm=choice.algorithm if algorithm is None else algorithm,
        seconds=choice.seconds if seconds is None else float(seconds),
    )


def smaller(
    states: DnnStates, library: Library, choice: Choice, state: DnnState, plan: Plan, error: OutOfMemoryError
) -> tuple[Plan, Any]:
    """Ask for plans that need less and less, until there is room for one; returns it with its lease.

    The state is held meanwhile, so nothing is timed: of what has room the library's own order decides.

    Raises:
        OutOfMemoryError: `error`, or the last one: not even the smallest has room.
    """
    most = plan.workspace_bytes
    if choice.algorithm == "measure":
        choice = replace(choice, algorithm="heuristic")
    while most > 0:
        most //= 2
        try:
            key = plan.operation, replace(choice, max_workspace=most)
            plan = states.smaller.get(key, lambda key=key: library.compile(*key))  # type: ignore[misc]
            return plan, state.workspace.get(plan.workspace_bytes) if plan.workspace_bytes else None
        except UnsupportedError:
            break
        except OutOfMemoryError as again:
            error = again
    raise error

"""Entering a context and asking for the current one."""

from __future__ import annotations

from contextvars import ContextVar
from types import ModuleType

import tazza as tz
from benchmarks.compare import peer
from benchmarks.harness import Area, Budget, Case

UNROLLED = 100


class TokenScope:
    """The floor: one ContextVar set and reset by its token, in plain Python."""

    def __init__(self) -> None:
        self.variable: ContextVar[object] = ContextVar("floor")

    def __enter__(self) -> None:
        self.token = self.variable.set(self)

    def __exit__(self, *exc_info: object) -> None:
        self.variable.reset(self.token)


def area() -> Area:
    """Cases of ``with ctx:`` and ``tz.current()``."""
    context = tz.context("cpu")
    variable: ContextVar[object] = ContextVar("bare", default=None)
    variable.set(context)

    def scope(who: str, enter: str, value: object) -> Case:
        return Case(f"context.with.{who}", f"with {enter}:\n    pass", {"scope": value})

    def torch(module: ModuleType) -> Case:
        return scope("torch", "scope", module.device("cpu"))

    def jax(module: ModuleType) -> Case:
        # jax.default_device is itself what makes the scope, so the call belongs to the price.
        names = {"scope": module.default_device, "device": module.devices("cpu")[0]}
        return Case("context.with.jax", "with scope(device):\n    pass", names)

    return Area(
        cases=[
            scope("tazza", "scope", context),
            scope("contextvar", "scope", TokenScope()),
            peer("context.with.torch", "torch", torch),
            peer("context.with.jax", "jax", jax),
            Case(
                "context.current.tazza",
                "with scope:\n" + "    current()\n" * UNROLLED,
                {"scope": context, "current": tz.current},
                operations=UNROLLED,
            ),
            Case("context.current.contextvar", "get()\n" * UNROLLED, {"get": variable.get}, operations=UNROLLED),
        ],
        budgets=[
            Budget("context.with.tazza", "context.with.torch", at_most=0.3),
            Budget("context.with.tazza", "context.with.jax", at_most=0.6),
            Budget("context.current.tazza", "context.current.contextvar", at_most=3.0),
        ],
    )

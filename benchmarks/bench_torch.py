"""A training step of PyTorch under a context, and without one; what entering ``ctx.bind()`` costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import tazza as tz
from benchmarks.compare import peer
from benchmarks.harness import Area, Budget, Case, Missing
from tazza.demo import autograd, network

BATCHES = (32, 128)
_RATE, _MOMENTUM = 0.05, 0.9
_SETS = 8  # of tensors, a step with each in one run of a statement: how tensors lie to each other changes its time
_WITH = "with scope:\n    pass"


class Steps:
    """The demo's network and one step of gradient descent with momentum, on inputs that are equal for both sides."""

    def __init__(self, torch: ModuleType, batch: int) -> None:
        # One thread on both sides: where others use the machine too, what is timed else is how its threads wait.
        torch.set_num_threads(1)
        self.torch: Any = torch
        self.ctx = ctx = _context()
        generator = tz.Generator(1)
        normals = generator.standard_normal(network.PARAMETER_COUNT, dtype="float32")
        images = generator.random((batch, 1, 8, 8), dtype="float32")
        labels = generator.integers(0, network.CLASSES, batch)
        start = network.initialise(ctx.xp, ctx.asarray(normals))
        # Clones: in memory that PyTorch aligned, as ours is aligned.
        tensors = start, torch.zeros_like(start), torch.from_numpy(images), torch.from_numpy(labels)
        self.plain = [[tensor.clone() for tensor in tensors] for _ in range(_SETS)]
        self.ours = [[ctx.asarray(tensor, copy=True) for tensor in tensors] for _ in range(_SETS)]

    def step(self, parameters: Any, velocity: Any, images: Any, labels: Any) -> None:
        """Move the parameters once."""
        slopes = autograd.gradient(self.torch, None, parameters, images, labels)
        velocity *= _MOMENTUM
        velocity -= slopes[: network.PARAMETER_COUNT] * (_RATE / len(images))
        parameters += velocity


def area() -> Area:
    """Cases of training steps and of ``with ctx.bind():``."""
    cases: list[Case | Missing] = []
    budgets = []
    for batch in BATCHES:
        plain, ours, eager = (f"torch.step-{batch}.{who}" for who in ("plain", "launched", "eager"))
        shared = cache(partial(Steps, batch=batch))

        def case(name: str, statement: str, side: str, shared: Callable[..., Steps] = shared) -> Case | Missing:
            return peer(name, "torch", lambda torch: _case(shared(torch), name, statement, side))

        cases += [
            case(plain, "step(*tensors)", "plain"),
            case(ours, "ctx.launch(step, *tensors)", "ours"),
            case(eager, "with ctx: step(*tensors)", "ours"),
        ]
        budgets += [Budget(ours, plain, at_most=1.02), Budget(eager, plain, at_most=1.02)]
    cases += [
        peer("torch.bind.tazza", "torch", lambda _: Case("torch.bind.tazza", _WITH, {"scope": _context().bind()})),
        peer(
            "torch.bind.torch", "torch", lambda torch: Case("torch.bind.torch", _WITH, {"scope": torch.device("cpu")})
        ),
    ]
    budgets.append(Budget("torch.bind.tazza", "torch.bind.torch", at_most=20.0, gated=False))
    return Area(cases=cases, budgets=budgets)


def _context() -> tz.Context:
    return tz.context("cpu", seed=1, arrays="torch", memory_limit="1GiB")


def _case(steps: Steps, name: str, statement: str, side: str) -> Case:
    names = {"ctx": steps.ctx, "step": steps.step, "sets": getattr(steps, side)}
    return Case(name, f"for tensors in sets:\n    {statement}", names, operations=_SETS)

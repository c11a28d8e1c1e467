"""A training step of PyTorch under a context, and without one; what entering ``ctx.bind()`` costs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import tazza as tz
from benchmarks.compare import peer
from benchmarks.harness import Area, Budget, Case, Missing
from tazza.demo import autograd, network

BATCHES = (32, 128)
_RATE, _MOMENTUM = 0.05, 0.9
_STEPS = 5  # in one run of a statement: a single one is as long as the machine's hiccups
_ARGUMENTS = f"parameters, velocity, images, labels, {_RATE}, {_MOMENTUM}"
_STEP = f"step({_ARGUMENTS})"
_WITH = "with scope:\n    pass"


class Steps:
    """The demo's network and one step of gradient descent with momentum, on inputs that are equal for both sides."""

    def __init__(self, torch: ModuleType, ctx: tz.Context, batch: int) -> None:
        self.torch: Any = torch
        generator = tz.Generator(1)
        normals = generator.standard_normal(network.PARAMETER_COUNT, dtype="float32")
        images = generator.random((batch, 1, 8, 8), dtype="float32")
        labels = generator.integers(0, network.CLASSES, batch)
        start = network.initialise(ctx.xp, ctx.asarray(normals))
        self.plain = {
            "parameters": start.clone(),
            "velocity": torch.zeros_like(start),
            "images": torch.from_numpy(images).clone(),  # in memory that PyTorch aligned, as ours is aligned
            "labels": torch.from_numpy(labels).clone(),
        }
        self.ours = {name: ctx.asarray(value, copy=True) for name, value in self.plain.items()}

    def step(self, parameters: Any, velocity: Any, images: Any, labels: Any, rate: float, momentum: float) -> None:
        """Move the parameters once."""
        slopes = autograd.gradient(self.torch, None, parameters, images, labels)
        velocity *= momentum
        velocity -= slopes[: network.PARAMETER_COUNT] * (rate / len(images))
        parameters += velocity


def area() -> Area:
    """Cases of training steps and of ``with ctx.bind():``."""
    cases: list[Case | Missing] = []
    budgets = []
    for batch in BATCHES:
        plain, ours, eager = (f"torch.step-{batch}.{who}" for who in ("plain", "launched", "eager"))

        def case(name: str, statement: str, side: str, batch: int = batch) -> Case | Missing:
            return peer(name, "torch", lambda torch: _case(torch, name, statement, side, batch))

        cases += [
            case(plain, _STEP, "plain"),
            case(ours, f"ctx.launch(step, {_ARGUMENTS})", "ours"),
            case(eager, f"with ctx:\n    {_STEP}", "ours"),
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


def _case(torch: ModuleType, name: str, statement: str, side: str, batch: int) -> Case:
    # One thread on both sides: where others use the machine too, what is timed else is how its threads wait.
    torch.set_num_threads(1)
    ctx = _context()
    steps = Steps(torch, ctx, batch)
    names = {"ctx": ctx, "step": steps.step, **getattr(steps, side)}
    return Case(name, f"{statement}\n" * _STEPS, names, operations=_STEPS)

"""The demo's training step through ``ctx.dnn`` beside the same network in eager PyTorch, with equal threads.

Both make the same step from equal numbers: gradient of the summed cross entropy, then gradient descent with momentum on
one flat array. Ours is the gradient written by hand (`tazza.demo.network`), theirs autograd's (`tazza.demo.autograd`).
One thread on each side, as in the demo, whose results must not depend on the number of cores.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import array_api_compat.numpy as namespace
import numpy as np

import tazza as tz
from benchmarks.dnn_peers import settled
from benchmarks.harness import Area, Budget, Case, Missing
from tazza.demo import autograd, network
from tazza.errors import BackendUnavailableError

BATCHES: Final = (32, 128)
_RATE, _MOMENTUM = 0.05, 0.9
_STEPS: Final = 5  # in one run of a statement: a single one is as long as the machine's hiccups


Gradient = Callable[[Any, Any, Any], Any]


class Training:
    """Parameters, velocity and one batch, and a step that moves the parameters.

    Args:
        gradient: of parameters, images and labels.
        own: makes an array of its library, in memory of its own, of one of NumPy's.
        batch: number of images.
    """

    def __init__(self, gradient: Gradient, own: Callable[[Any], Any], batch: int) -> None:
        self._gradient = gradient
        generator = tz.Generator(1)
        normals = generator.standard_normal(network.PARAMETER_COUNT, dtype="float32")
        self.parameters = own(network.initialise(namespace, normals))
        self.velocity = own(np.zeros_like(normals))
        self.images = own(generator.random((batch, 1, 8, 8), dtype="float32"))
        self.labels = own(generator.integers(0, network.CLASSES, batch))

    def step(self) -> Any:
        """Move the parameters once; returns the gradient, the loss before, and how many answers were right."""
        found = self._gradient(self.parameters, self.images, self.labels)
        self.velocity *= _MOMENTUM
        self.velocity -= found[: network.PARAMETER_COUNT] * (_RATE / len(self.images))
        self.parameters += self.velocity
        return found


def area(batches: tuple[int, ...] = BATCHES, dnn: str = "onednn", threads: int = 1) -> Area:
    """One case for each side and batch.

    Args:
        batches: images of a step.
        dnn: the library of our side.
        threads: of both sides.
    """
    cases: list[Case | Missing] = []
    budgets = []
    for batch in batches:
        ours, theirs = (f"demo_step.batch-{batch}.{who}" for who in ("tazza", "torch"))
        sides = _sides(batch, dnn)
        for name, side in zip((ours, theirs), sides, strict=True):
            cases.append(Missing(name, side) if isinstance(side, str) else _case(name, side))
        if not any(isinstance(side, str) for side in sides):
            _agree(*sides)
        budgets.append(Budget(ours, theirs, at_most=1.0))
    return Area(cases=cases, budgets=budgets, scope=tz.limit_threads(threads))


def _sides(batch: int, dnn: str) -> tuple[Training | str, Training | str]:
    """Our side and PyTorch's, each or why it is not there."""
    return _ours(batch, dnn), _theirs(batch)


def _ours(batch: int, dnn: str) -> Training | str:
    ctx = tz.context("cpu", seed=1, dnn=dnn)
    try:
        _ = ctx.dnn
    except BackendUnavailableError as error:
        return str(error)
    return Training(
        lambda parameters, images, labels: network.gradient(ctx.xp, ctx.dnn, parameters, images, labels),
        lambda array: ctx.asarray(array, copy=True),
        batch,
    )


def _theirs(batch: int) -> Training | str:
    """What one would write without tazza: plain tensors, in memory that PyTorch aligned."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "torch is not installed; pip install '.[bench]'"
    xp: Any = importlib.import_module("array_api_compat.torch")
    unused: Any = None
    return Training(
        lambda parameters, images, labels: autograd.gradient(xp, unused, parameters, images, labels),
        lambda array: torch.from_numpy(array).clone(),
        batch,
    )


def _agree(ours: Any, theirs: Any) -> None:
    """Both must find the same."""
    for _ in range(3):
        found, expected = np.asarray(ours.step()), theirs.step().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * float(np.abs(expected).max()))


def _case(name: str, training: Training) -> Case:
    names = {"step": training.step, "settled": settled}
    return Case(name, "step()\n" * _STEPS, names, setup="settled(step)", operations=_STEPS)

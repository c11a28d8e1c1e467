"""The functions that the demo launches; inside them arrays are those of the device, whatever it is.

Each takes the arrays it needs as arguments and finds namespace and library in the current context. Nothing here knows
which device it runs on, and only the choice of the network which array library it works with.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

import tazza as tz
from tazza.demo import autograd, network
from tazza.dnn import Array

__all__ = ["SHIFT_DRAWS", "initial_parameters", "library", "predictions", "shard_gradient", "shifted", "update"]

SHIFT_DRAWS: Final = 6


@tz.kernel(reads=("normals",))
def initial_parameters(normals: Array) -> Array:
    """Return the parameters that training starts from."""
    return network.initialise(tz.current().xp, normals)


@tz.kernel(reads=("images", "draws"))
def shifted(images: Array, draws: Array) -> Array:
    """Move about half of the images by one pixel, with zeros coming in, so that no two epochs see the same.

    Args:
        images: (N, 1, 8, 8).
        draws: (N, 2), random integers below `SHIFT_DRAWS`, for up or down and for left or right: 0 moves an image
            against the axis, 1 along it, others not at all.
    """
    xp = tz.current().xp
    shifts = xp.where(draws == 0, -1, xp.where(draws == 1, 1, 0))
    count, channels, height, width = images.shape
    padded = xp.zeros((count, channels, height + 2, width + 2), dtype=images.dtype)
    padded[:, :, 1:-1, 1:-1] = images
    result = xp.zeros_like(images)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            chosen = xp.astype((shifts[:, 0] == down) & (shifts[:, 1] == right), images.dtype)
            moved = padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
            result += moved * xp.reshape(chosen, (-1, 1, 1, 1))
    return result


@tz.kernel(reads=("parameters", "images", "labels", "order"))
def shard_gradient(parameters: Array, images: Array, labels: Array, order: Array, first: int, last: int) -> Array:
    """Return gradient, summed loss and right answers of images ``order[first:last]`` as one array.

    One native thread, however many the machine has: a matrix product split over threads rounds differently.
    """
    ctx = tz.current()
    rows = order[first:last]
    with tz.limit_threads(1):
        chosen, answers = ctx.xp.take(images, rows, axis=0), ctx.xp.take(labels, rows, axis=0)
        return _network(ctx).gradient(ctx.xp, ctx.dnn, parameters, chosen, answers)


@tz.kernel(reads=("shards",), writes=("parameters", "velocity", "tally"))
def update(
    parameters: Array, velocity: Array, tally: Array, images: int, rate: float, momentum: float, *shards: Array
) -> None:
    """Make one step of gradient descent with momentum in place, and count loss and right answers.

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum", 2013, equations 1, 2.

    Args:
        parameters: (PARAMETER_COUNT,), changed.
        velocity: (PARAMETER_COUNT,), changed.
        tally: (2,), summed loss and right answers so far, changed.
        images: in the batch.
        rate: learning rate of this step.
        momentum: share of the velocity that is kept.
        shards: what `shard_gradient` returned for each part of the batch, added in this order.
    """
    total: Any = shards[0]
    for shard in shards[1:]:
        total = total + shard
    velocity *= momentum
    velocity -= total[: network.PARAMETER_COUNT] * (rate / images)
    parameters += velocity
    tally += total[network.PARAMETER_COUNT :]


@tz.kernel(reads=("parameters", "images"))
def predictions(parameters: Array, images: Array) -> Array:
    """Return the digit that the network sees in each image, (N,) int64."""
    ctx = tz.current()
    with tz.limit_threads(1):
        return ctx.xp.argmax(_network(ctx).predict(ctx.xp, ctx.dnn, parameters, images), axis=1)


def library() -> tuple[str, str]:
    """Return name and version of the library that computes the network's layers here."""
    ctx = tz.current()
    return autograd.library() if _network(ctx) is autograd else (ctx.dnn.name, ctx.dnn.library.version)


def _network(ctx: tz.Context) -> ModuleType:
    """The network with the gradient written by hand, or the one that an array library with autograd has itself."""
    return autograd if ctx.spec.arrays == "torch" else network

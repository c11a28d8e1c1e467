"""PyTorch's autograd over the operations: a call whose tensors require grad becomes a node of its graph.

The gradient of each operation is its own ``.backward``, which takes what the forward call took, and its result where
the table says so. Gradients are for the first inputs, in order; those of statistics and masks do not exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tazza.dnn.operations import OPERATIONS
from tazza.errors import UnsupportedError

__all__ = ["tracked"]

Do = Callable[[str, Sequence[Any], tuple[Any, ...], bool], list[Any]]
"""Does an operation by its name: inputs, options, and whether an optional first output is wanted."""

_LOSS = "softmax_cross_entropy"  # whose gradient is its second output


def tracked(do: Do, name: str, inputs: Sequence[Any], options: tuple[Any, ...]) -> list[Any]:
    """Do an operation on tensors of which some require grad; the first output is differentiable, others are not.

    Raises:
        UnsupportedError: an input requires grad for which the operation has no gradient.
    """
    if name.endswith(".backward"):
        raise UnsupportedError(f"{name} cannot be differentiated once more; call it under torch.no_grad()")
    for position, tensor in enumerate(inputs):
        if getattr(tensor, "requires_grad", False) and position >= _differentiable(name):
            raise UnsupportedError(f"{name} has no gradient for {OPERATIONS[name].inputs[position]}; give its detach()")
    found: Any = _function().apply(do, name, options, *inputs)
    return list(found)


def _differentiable(name: str) -> int:
    """Count the inputs, from the first on, that have a gradient."""
    if name == _LOSS:
        return 1
    return sum(one not in ("mean", "variance", "mask") for one in OPERATIONS[name].inputs)


@functools.cache
def _function() -> Any:
    """The node: made once there is a tensor, and so PyTorch."""
    import torch
    from torch.autograd.function import once_differentiable

    class Tracked(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(ctx: Any, do: Do, name: str, options: tuple[Any, ...], *inputs: Any) -> tuple[Any, ...]:
            outputs = do(name, inputs, options, True)
            ctx.do, ctx.name, ctx.options = do, name, options
            ctx.save_for_backward(*inputs, *outputs)
            ctx.mark_non_differentiable(*outputs[1:])
            return tuple(outputs)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
        def backward(ctx: Any, dy: Any, *_: Any) -> tuple[Any, ...]:
            name, names = ctx.name, OPERATIONS[ctx.name].inputs
            inputs, outputs = ctx.saved_tensors[: len(names)], ctx.saved_tensors[len(names) :]
            wanted = ctx.needs_input_grad[3:]
            if name == _LOSS:
                return (None, None, None, outputs[1] * dy, None)
            given = dict(zip(names, inputs, strict=True)) | {"dy": dy, "y": outputs[0]}
            if len(outputs) == 3:  # what a normalisation found out about its input
                given |= {"mean": outputs[1], "variance": outputs[2]}
            backward = f"{name}.backward"
            arguments = [given[one] for one in OPERATIONS[backward].inputs]
            found = ctx.do(backward, arguments, ctx.options, wanted[0])
            gradients = [one if need else None for one, need in zip(found, wanted, strict=False)]
            return (None, None, None, *gradients, *[None] * (len(inputs) - len(gradients)))

    return Tracked

"""What ``tazza bench`` can time: operations on arrays, of ours or of the user."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tazza as tz
from tazza.errors import ArgumentError

__all__ = ["BUILT_IN", "Operation", "parse_shape", "resolve"]

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int | None, ...]
"""Extents of an argument; None stands for the size that is being measured."""

_VECTOR: Shape = (None,)
_SQUARE: Shape = (None, None)
_POWERS = tuple(2**power for power in range(10, 23, 3))


@dataclass(frozen=True, slots=True)
class Operation:
    """A function to launch, and the arrays it takes.

    Attributes:
        name: as it was asked for.
        function: called as a launched function with arrays of the device, after `size` where `takes_size` says so.
        shapes: of its arguments, float32.
        sizes: measured where the user names none.
        takes_size: the size itself is passed as the first argument.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[Shape, ...]
    sizes: tuple[int, ...] = _POWERS
    takes_size: bool = False

    def arguments(self, size: int) -> list[Array]:
        """Return host arrays of reproducible random numbers for one size."""
        random = np.random.default_rng(size)
        shapes = [tuple(size if extent is None else extent for extent in shape) for shape in self.shapes]
        return [random.standard_normal(shape, dtype=np.float32) for shape in shapes]

    def nbytes(self, size: int) -> int:
        """Return the bytes of all arguments."""
        return 4 * sum(math.prod(size if extent is None else extent for extent in shape) for shape in self.shapes)


def _matmul(a: Any, b: Any) -> Any:
    return tz.current().xp.matmul(a, b)


def _copy(x: Any) -> Any:
    return tz.current().xp.asarray(x, copy=True)


def _random(size: int) -> Any:
    return tz.current().random.standard_normal(size, dtype="float32")


BUILT_IN = {
    operation.name: operation
    for operation in (
        Operation("matmul", _matmul, (_SQUARE, _SQUARE), sizes=(32, 64, 128, 256, 512)),
        Operation("copy", _copy, (_VECTOR,)),
        Operation("random", _random, (), takes_size=True),
    )
}
"""The operations that come with the command, by name."""


def resolve(text: str, shapes: tuple[Shape, ...] = ()) -> Operation:
    """Find a built-in operation, or the function that ``"module:function"`` names.

    Args:
        text: what to time.
        shapes: of a user's function's arguments; empty gives each parameter without a default a vector.

    Raises:
        ArgumentError: there is no such operation, or it cannot be imported.
    """
    if text in BUILT_IN:
        if shapes:
            raise ArgumentError.of("--shape", f"for {text}", "shapes only with a function of your own")
        return BUILT_IN[text]
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ArgumentError.of("operation", text, f"{', '.join(BUILT_IN)} or 'module:function'")
    function = _imported(module, name)
    return Operation(text, function, shapes or (_VECTOR,) * _required(function))


def parse_shape(text: str) -> Shape:
    """Read ``"N,64"``: extents, of which N is the size that is being measured.

    >>> parse_shape("N,64")
    (None, 64)
    """
    extents = [part.strip() for part in text.split(",")]
    if not all(part == "N" or (part.isdigit() and int(part) > 0) for part in extents):
        raise ArgumentError.of("--shape", text, "extents such as 'N', 'N,N' or 'N,64'")
    return tuple(None if part == "N" else int(part) for part in extents)


def _imported(module: str, name: str) -> Callable[..., Any]:
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` does: a user's module is usually beside the user
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"operation: {module}:{name} cannot be imported: {error}") from error
    if not callable(function):
        raise ArgumentError.of("operation", function, "a function")
    return function  # type: ignore[no-any-return]


def _required(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is inspect.Parameter.empty for one in parameters)

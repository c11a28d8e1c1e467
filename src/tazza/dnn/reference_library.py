"""The reference as a library: what runs where no other is installed, and what others fall back to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import array_api_compat.numpy as xp
import numpy as np

from tazza._version import __version__
from tazza.dnn.library import Choice, Library, Operation, Plan
from tazza.dnn.operations import OPERATIONS
from tazza.dnn.reference import ReferenceDnn
from tazza.dnn.workspace import Lease

__all__ = ["ReferenceLibrary"]

_DTYPES = ("float32", "float64")
_METHODS = {"dropout": "dropout_by"}  # the others are called like the operation


@final
class ReferenceLibrary(Library):
    """`ReferenceDnn` behind the interface of libraries, on hosts; it needs no handle and no workspace.

    >>> ReferenceLibrary().supports("conv2d.backward", dtype="float64")
    True
    """

    name = "reference"
    version = __version__

    def supports(self, feature: str, *, dtype: str = "float32") -> bool:
        return feature in OPERATIONS and dtype in _DTYPES

    def compile(self, operation: Operation, choice: Choice) -> Plan:
        return _ReferencePlan(operation)

    def open(self) -> Any:
        return None

    def close(self, handle: Any) -> None:
        """Nothing was opened."""


@final
class _ReferencePlan(Plan):
    algorithm = "formula"
    workspace_bytes = 0

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        kind = OPERATIONS[operation.name]
        method = _METHODS.get(operation.name, operation.name.replace(".", "_"))
        self._method = getattr(ReferenceDnn(xp), method)
        self._names = kind.inputs
        self._options = dict(zip(kind.options, operation.options, strict=True))
        if operation.outputs[0] is None:
            self._options["need_dx"] = False

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        state.check_held()
        count = len(self._names)
        given = {name: array for name, array in zip(self._names, arrays[:count], strict=True) if array is not None}
        found = self._method(**given, **self._options)
        for output, made in zip(arrays[count:], found if isinstance(found, tuple) else (found,), strict=True):
            if output is not None:
                np.copyto(output, made)

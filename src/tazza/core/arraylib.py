"""What an array library is to a context: the user's own arrays on one device."""

from __future__ import annotations

import abc
import importlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from tazza.core import registry
from tazza.core.device import Device
from tazza.core.dtypes import dtype_on
from tazza.core.generator import Sink
from tazza.errors import ArgumentError, ClosedError, UsageError
from tazza.hot import Buffer, run_in
from tazza.util.hostmemory import HostMemory

__all__ = ["ArrayLibrary", "array_library", "elements", "host_array", "is_array", "map_leaves", "namespace_of"]


class ArrayLibrary(abc.ABC):
    """One array library on one context; found by name, stateless apart from the context it was made for."""

    name: str

    def __init__(self, context: Any) -> None:
        self._context = weakref.ref(context)

    @abc.abstractmethod
    def namespace(self) -> Any:
        """Return the Array API namespace with creation functions bound to the device.

        Raises:
            UsageError: eager operations are not possible here; says what to do instead.
        """

    def check_eager(self) -> None:
        """Raise where operations outside a launched function are not possible now.

        Raises:
            UsageError: a stream is current that they would not queue on, or the host cannot compute there at all.
        """
        context = self.context
        if not context.stream.runner.is_inline and not context.inside_task:
            raise UsageError(
                f"{context.stream!r} is current, and eager operations would not queue on it; "
                "put them into a function and give that to ctx.launch"
            )

    @abc.abstractmethod
    def owns(self, value: object) -> bool:
        """Tell whether `value` is an array that this library made in this context's memory domain or can use there."""

    def reaches(self, buffer: Buffer) -> bool:
        """Tell whether functions launched on the context can see the buffer's memory."""
        return bool(buffer.device.memory_domain == self.context.device.memory_domain)

    def check_bindable(self) -> None:
        """Raise where code that calls other libraries directly is not possible now."""
        self.check_eager()

    def dtype(self, dtype: Any, device: Device) -> Any:
        """Resolve what a user gave as a dtype of this library on the device.

        Raises:
            ArgumentError: it is no dtype.
            UnsupportedError: the device lacks it; names the nearest one that it has.
        """
        return dtype_on(device, dtype)

    def sink(self) -> Sink | None:
        """Where the generator's draws go; None makes NumPy arrays, filled before the call returns."""
        return None

    def tracks(self, values: Sequence[Any]) -> bool:
        """Tell whether the library records what is done with some of these values, for gradients of its own."""
        return False

    def plain(self, value: Any, *, writes: bool = False) -> Any:
        """What copies and fills may take for a value: a Buffer, a NumPy array over the same memory, or as it came."""
        return value

    def cell(self, dst: Any, value: object) -> object:
        """The value to fill `dst` with, as bytes where NumPy lacks the dtype of `dst`."""
        return value

    def stored(self, value: object) -> Any:
        """The NumPy array that a state file keeps of an array of this library."""
        return self.to_numpy(value)

    def restored(self, array: Any) -> Any:
        """The array that an object gets back for what `stored` returned."""
        return array

    def origin(self, value: Any) -> Buffer | None:
        """The Buffer whose memory an array of this library uses, or None."""
        while isinstance(value, np.ndarray):
            value = value.base
        if isinstance(value, memoryview):
            value = value.obj
        if isinstance(value, HostMemory):
            value = value.owner
        return value if isinstance(value, Buffer) else None

    @property
    def context(self) -> Any:
        """The context that the library was made for, which holds it: a strong reference would be a cycle."""
        context = self._context()
        if context is None:
            raise ClosedError("the context of these arrays is gone; keep it while it is used")
        return context

    @abc.abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Make an uninitialised array, in pooled memory of the context unless a task makes it for itself."""

    def empty_with_view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """The same for a dtype that the device has; also returns the array as NumPy sees it."""
        made = self.empty(shape, self.dtype(dtype, self.context.device))
        return made, self.plain(made, writes=True)

    @abc.abstractmethod
    def asarray(self, value: object, dtype: Any, copy: bool | None) -> Any:
        """Bring host data, or an array of any context, onto the device."""

    @abc.abstractmethod
    def receive(self, result: Buffer) -> Any:
        """Make a private copy of what a finished task of another memory domain returned."""

    @abc.abstractmethod
    def to_numpy(self, value: object) -> Any:
        """Copy into the host, after what is queued on the array."""

    @abc.abstractmethod
    def inside(self, buffer: Buffer) -> Any:
        """The array that a launched function sees in place of a Buffer argument."""

    @abc.abstractmethod
    def outcome(self, array: Any, seen: list[tuple[Any, Buffer]]) -> Any:
        """What the task keeps for an array that the function returned; `seen` pairs its views with their buffers."""


def array_library(owner: Any, device: Device, name: str) -> ArrayLibrary:
    """Make the array library of that name for a context.

    Raises:
        ArgumentError: the device has none of that name.
        BackendUnavailableError: it is not installed; says what to install.
    """
    known = device.capabilities.array_libraries
    if name not in known:
        raise ArgumentError.of("arrays", name, f"an array library of {device}: {', '.join(known)}")
    side = "host" if device.capabilities.host_addressable else "device"
    return cast(ArrayLibrary, registry.load(f"arrays.{side}.{name}")(owner))


def is_array(value: object) -> bool:
    """Tell whether a value is an array of some library, other than a Buffer."""
    return hasattr(type(value), "__dlpack__") and not isinstance(value, Buffer)


def host_array(value: Any) -> Any:
    """An array of another library as NumPy sees it, without a copy; other values pass.

    Raises:
        ArgumentError: NumPy cannot see it: it is on a device, has a dtype that NumPy lacks, or takes part in autograd.
    """
    if isinstance(value, np.ndarray) or not is_array(value):
        return value
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"obj: {type(value).__name__} cannot become a NumPy array: {error}") from None


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape, or ArgumentError where it is none."""
    count = 1
    for extent in shape:
        if type(extent) is int and extent >= 0:
            count *= extent
            continue
        if isinstance(extent, bool) or not isinstance(extent, int | np.integer) or extent < 0:
            raise ArgumentError.of("shape", shape, "non-negative integers")
        count *= int(extent)
    return count


_namespaces: dict[str, Any] = {}


def namespace_of(library: str) -> Any:
    """Return array-api-compat's namespace of a library.

    It is imported with nothing entered: the arrays that its modules keep for good are charged to nobody.
    """
    found = _namespaces.get(library)
    if found is None:
        found = run_in(None, importlib.import_module, (f"array_api_compat.{library}",), {})
        _namespaces[library] = found
    return found


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply `function` to every leaf of nested lists, tuples and dicts; other containers are leaves."""
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([map_leaves(function, item) for item in value])
    if isinstance(value, tuple) and hasattr(kind, "_make"):  # a named tuple, as typing.NamedTuple makes them
        return kind._make(map_leaves(function, item) for item in value)
    if kind is dict:
        return {key: map_leaves(function, item) for key, item in value.items()}
    return function(value)

"""The thin binding: descriptors that live as long as their plan, and the choice among cuDNN's algorithms."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, final

from tazza.contexts.cuda_handles import call_library
from tazza.core.runtime import DeviceRuntime
from tazza.dnn.library import Choice, Layout
from tazza.drivers.cuda.libraries import NativeLibrary
from tazza.errors import BackendError, LeakWarning, UnsupportedError
from tazza.hot import after_fork
from tazza.util.report import report

__all__ = ["ONE", "ZERO", "Algorithm", "Descriptors", "candidates", "destroy_dropped", "pointer"]

_FLOAT32, _NCHW, _CROSS_CORRELATION, _FMA, _RELU, _PROPAGATE_NAN = 0, 0, 1, 3, 1, 1
ONE: Final = ctypes.byref(ctypes.c_float(1))
ZERO: Final = ctypes.byref(ctypes.c_float(0))


def pointer(value: Any) -> ctypes.c_void_p:
    """An address for a call."""
    return ctypes.c_void_p(value)


class _Performance(ctypes.Structure):
    """As cudnnConvolution{Fwd,BwdData,BwdFilter}AlgoPerf_t."""

    _fields_ = (
        ("algorithm", ctypes.c_int),
        ("status", ctypes.c_int),
        ("time", ctypes.c_float),
        ("memory", ctypes.c_size_t),
        ("determinism", ctypes.c_int),
        ("math", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
    )


class Algorithm(NamedTuple):
    """One of cuDNN's: its number, and the bytes that it needs."""

    number: int
    nbytes: int


_MOST = 16


def candidates(
    runtime: DeviceRuntime, library: NativeLibrary, handle: int, what: str, args: Sequence[Any], choice: Choice
) -> list[Algorithm]:
    """The algorithms that fit, one or more, in cuDNN's own order: best first, as far as it knows without running them.

    Args:
        what: ``"Forward"``, ``"BackwardData"`` or ``"BackwardFilter"``.
        args: the descriptors of the call.

    Raises:
        UnsupportedError: none does.
    """
    told, found = ctypes.c_int(), (_Performance * _MOST)()
    call = f"cudnnGetConvolution{what}Algorithm_v7"
    call_library(runtime, library, call, pointer(handle), *args, _MOST, ctypes.byref(told), found)
    most, least = choice.max_workspace, None
    fitting: dict[int, Algorithm] = {}  # by number: a second entry differs in what the descriptor has decided
    for one in found[: told.value]:
        if one.status or (choice.algorithm == "deterministic" and not one.determinism):
            continue
        if most is None or one.memory <= most:
            fitting.setdefault(one.algorithm, Algorithm(one.algorithm, one.memory))
        else:
            least = one.memory if least is None else min(least, one.memory)
    if fitting:
        return list(fitting.values())
    room = "" if least is None else f" within {most} bytes of workspace; the smallest needs {least}"
    raise UnsupportedError(f"cudnn: no {choice.algorithm} algorithm for {call.removeprefix('cudnnGet')}{room}")


_dropped: deque[tuple[NativeLibrary, str, ctypes.c_void_p]] = deque()
"""Descriptors of plans that are gone; a finaliser only appends to it."""

after_fork(_dropped.clear)  # they are the parent's


def destroy_dropped() -> None:
    """Destroy the descriptors of plans that are gone; what cuDNN refuses is named in a warning, and tried next time."""
    for _ in range(len(_dropped)):
        try:
            library, kind, made = _dropped.popleft()
        except IndexError:  # another thread took the last one
            return
        try:
            library.call(f"cudnnDestroy{kind}Descriptor", made)
        except BackendError as error:
            _dropped.append((library, kind, made))
            report("a descriptor of cuDNN was not destroyed", LeakWarning, error=error)


@final
class Descriptors:
    """Descriptors of a plan, destroyed after it: they are records of the host, and no device is needed for that."""

    def __init__(self, library: NativeLibrary) -> None:
        destroy_dropped()
        self._library = library
        self._made: list[tuple[str, ctypes.c_void_p]] = []

    def _new(self, kind: str) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._library.call(f"cudnnCreate{kind}Descriptor", ctypes.byref(made))
        self._made.append((kind, made))
        return made

    def tensor(self, layout: Layout) -> ctypes.c_void_p:
        """Of an array of four axes."""
        made = self._new("Tensor")
        self._library.call("cudnnSetTensor4dDescriptorEx", made, _FLOAT32, *layout.shape, *layout.strides)
        return made

    def channels(self, count: int) -> ctypes.c_void_p:
        """Of one number for each channel."""
        return self.tensor(Layout("float32", (1, count, 1, 1), (count, 1, 1, 1)))

    def filters(self, layout: Layout) -> ctypes.c_void_p:
        """Of weights, which lie as OIHW."""
        made = self._new("Filter")
        self._library.call("cudnnSetFilter4dDescriptor", made, _FLOAT32, _NCHW, *layout.shape)
        return made

    def convolution(self, options: tuple[Any, ...]) -> ctypes.c_void_p:
        """Of stride, padding, dilation and groups."""
        stride, padding, dilation, groups = options[:4]
        made = self._new("Convolution")
        sizes = (*padding, *stride, *dilation)
        self._library.call("cudnnSetConvolution2dDescriptor", made, *sizes, _CROSS_CORRELATION, _FLOAT32)
        self._library.call("cudnnSetConvolutionGroupCount", made, groups)
        self._library.call("cudnnSetConvolutionMathType", made, _FMA)
        return made

    def relu(self) -> ctypes.c_void_p:
        """Of relu, which keeps what is no number."""
        made = self._new("Activation")
        self._library.call("cudnnSetActivationDescriptor", made, _RELU, _PROPAGATE_NAN, ctypes.c_double(0))
        return made

    def __del__(self) -> None:
        # An append each, as in any finaliser.
        for kind, made in self._made:
            _dropped.append((self._library, kind, made))

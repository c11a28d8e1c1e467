"""Queues, events and what else of them other libraries are shown and show us."""

from __future__ import annotations

from typing import Any, final

from tazza.errors import ArgumentError

__all__ = ["NativeEvent", "NativeQueue", "integer_of"]


@final
class NativeQueue(int):
    """A CUstream as an integer, which also speaks the protocol of cuda.core: whoever takes either takes this."""

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version and handle, https://nvidia.github.io/cuda-python/cuda-core/latest/interoperability.html."""
        return 0, int(self)


@final
class NativeEvent(int):
    """A CUevent as an integer, which knows whether it carries a time; it is recorded again once it was given back."""

    timing: bool

    def __new__(cls, native: Any, timing: bool) -> NativeEvent:
        event = super().__new__(cls, native)
        event.timing = timing
        return event


def integer_of(native: object) -> int:
    """The CUstream that an integer, or an object with ``__cuda_stream__``, stands for.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(native, bool):
        raise ArgumentError.of("native", native, _EXPECTED)
    told = getattr(native, "__cuda_stream__", None)
    if told is not None and not isinstance(native, int):
        answer = told() if callable(told) else told  # the first users of the protocol made it an attribute
        if isinstance(answer, tuple) and len(answer) == 2 and answer[0] == 0:
            return int(answer[1])
        raise ArgumentError.of("native", native, f"{_EXPECTED}; its __cuda_stream__ gives {answer!r}, not (0, address)")
    try:
        return int(native)  # type: ignore[call-overload, no-any-return]  # the bindings' CUstream is no int, but has one
    except (TypeError, ValueError):
        raise ArgumentError.of("native", native, _EXPECTED) from None


_EXPECTED = "a CUstream as an integer, or an object with __cuda_stream__"

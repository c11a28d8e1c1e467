"""Every exception and warning of the package.

::

    TazzaError
    ├── UsageError (RuntimeError)                 your mistake; the message says what to do
    │   ├── ArgumentError (ValueError)            an argument has the wrong value or type
    │   │   └── CompileError                      source that the device's compiler refuses; has its log
    │   ├── ClosedError                           the object, or its context, is closed
    │   ├── BusyError                             the object is in use and cannot do this now
    │   │   └── QueueFullError                    a bounded queue has no room and the caller must not block
    │   ├── WrongDeviceError                      two memory domains were mixed
    │   ├── NoCurrentContextError (LookupError)   no context is current here
    │   ├── DeadlockError                         the caller would wait for itself
    │   └── ForkedError                           the object belongs to the process before a fork
    ├── BackendUnavailableError (ImportError)     the backend cannot be used here, with reason and hint
    ├── UnsupportedError (NotImplementedError)    this device cannot do that; names what can
    │   └── ExportError (BufferError)             memory cannot be handed out in the way that was asked for
    ├── WaitTimeoutError (TimeoutError)           a wait ended by its timeout; nothing was cancelled
    ├── TaskError                                 what became of a task
    │   ├── CancelledTaskError                    the task was cancelled before it started
    │   ├── UpstreamError                         a task that this one needs failed or was cancelled
    │   └── EscapedViewError                      a launched function kept a view of device memory
    ├── CheckpointError (ValueError)              a state file is damaged, foreign or does not fit
    ├── SharedMemoryError (ValueError)            a shared segment is gone, damaged, foreign or does not fit
    ├── BackendError (RuntimeError)               the world's failure: driver, library, device
    │   ├── OutOfMemoryError (MemoryError)        no memory within the limits; names the largest holders
    │   └── DeviceLostError                       sticky: every later call on the device fails
    └── InternalError (RuntimeError)              our bug: please report it

    LeakWarning (ResourceWarning)                 something was dropped that should have been closed
    CleanupWarning (RuntimeWarning)               a failure that could not be raised where it happened

Every error can be pickled and none holds frames or device memory alive.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArgumentError",
    "BackendError",
    "BackendUnavailableError",
    "BusyError",
    "CancelledTaskError",
    "CheckpointError",
    "CleanupWarning",
    "ClosedError",
    "CompileError",
    "DeadlockError",
    "DeviceLostError",
    "EscapedViewError",
    "ExportError",
    "ForkedError",
    "InternalError",
    "LeakWarning",
    "NoCurrentContextError",
    "OutOfMemoryError",
    "QueueFullError",
    "SharedMemoryError",
    "TaskError",
    "TazzaError",
    "UnsupportedError",
    "UpstreamError",
    "UsageError",
    "WaitTimeoutError",
    "WrongDeviceError",
]


class TazzaError(Exception):
    """Base of every exception that tazza raises itself."""


class UsageError(TazzaError, RuntimeError):
    """The program used tazza in a way that cannot be right."""


class ArgumentError(UsageError, ValueError):
    """An argument has a wrong value or type; names the argument, what came and what was expected."""

    @classmethod
    def of(cls, argument: str, got: object, expected: str) -> ArgumentError:
        """Build the message from the argument's name, the value that came and what was expected."""
        return cls(f"{argument}: got {_brief(got)}, expected {expected}")


class CompileError(ArgumentError):
    """Source that the device's compiler refuses.

    Attributes:
        log: what the compiler said.
    """

    def __init__(self, message: str, log: str = "") -> None:
        self.log = log
        super().__init__(f"{message}:\n{log}" if log else message)


class ClosedError(UsageError):
    """The object or its context was closed and accepts no new work."""


class BusyError(UsageError):
    """The object is in use and cannot do this now."""


class QueueFullError(BusyError):
    """A stream's bounded queue is full and the calling thread must not block (an event loop runs in it)."""


class WrongDeviceError(UsageError):
    """An object of one memory domain was used on another; the message names both and the call that moves it."""


class NoCurrentContextError(UsageError, LookupError):
    """No context is current here; contexts are never chosen implicitly."""


class DeadlockError(UsageError):
    """The wait could only end after the waiter itself: it was refused at once."""


class ForkedError(UsageError):
    """The object was made before this process was forked and cannot be used here; make a new context."""


class BackendUnavailableError(TazzaError, ImportError):
    """A backend cannot be used in this process.

    Attributes:
        backend: the backend's name.
        reason: why it cannot be used.
        hint: what to install or set, or an empty string.
    """

    def __init__(self, backend: str, reason: str, hint: str = "") -> None:
        self.backend, self.reason, self.hint = backend, reason, hint
        super().__init__(f"backend {backend!r} is not usable: {reason}" + (f" ({hint})" if hint else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.reason, self.hint)


class UnsupportedError(TazzaError, NotImplementedError):
    """The device or backend does not have this ability; the message names what to use instead."""


class ExportError(UnsupportedError, BufferError):
    """A buffer cannot be handed to another library in the way that it asks for; the message names what can."""


class WaitTimeoutError(TazzaError, TimeoutError):
    """A wait ended by its timeout. What was waited for goes on and nothing was cancelled."""


class TaskError(TazzaError):
    """Base of what can become of a task besides its own exception."""


class CancelledTaskError(TaskError):
    """The task was cancelled before it started."""


class UpstreamError(TaskError):
    """A task that this one depends on failed or was cancelled, so this one did not run.

    Attributes:
        cause: the first cause, an exception without frames.
    """

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        self.cause = cause
        super().__init__(message)
        self.__cause__ = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.cause)


class EscapedViewError(TaskError):
    """A launched function kept a view of device memory beyond its end; the view would dangle on real hardware."""


class CheckpointError(TazzaError, ValueError):
    """A state file is damaged, was written by something else, or does not fit this context."""


class SharedMemoryError(TazzaError, ValueError):
    """A shared segment is gone with its creator, was made by something else, is damaged, or does not fit."""


class BackendError(TazzaError, RuntimeError):
    """A driver, library or device failed.

    Attributes:
        backend: the backend's name, for example ``"cuda"``.
        call: the driver call that failed.
        code: the driver's status code, or None.
        symbol: the driver's name for the code, or an empty string.
        hint: what usually helps, or an empty string.
    """

    def __init__(
        self,
        message: str,
        *,
        backend: str = "",
        call: str = "",
        code: int | None = None,
        symbol: str = "",
        hint: str = "",
    ) -> None:
        self.message, self.backend, self.call = message, backend, call
        self.code, self.symbol, self.hint = code, symbol, hint
        where = f"{backend}.{call}: " if backend and call else ""
        status = f" [{symbol or code}]" if symbol or code is not None else ""
        super().__init__(f"{where}{message}{status}" + (f"; {hint}" if hint else ""))

    def _fields(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "call": self.call,
            "code": self.code,
            "symbol": self.symbol,
            "hint": self.hint,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self._fields())


class OutOfMemoryError(BackendError, MemoryError):
    """No memory could be had within the limits, after every relief was tried.

    Attributes:
        requested: bytes asked for.
        limit: the limit that was met in bytes, or None where the device itself was full.
        live: bytes live and pending under that limit.
        holders: the largest holders as ``(label, bytes, blocks)``, largest first.
        site: where the memory was asked for, ``"file:line function"`` of each frame outside of tazza, innermost first.
    """

    def __init__(
        self,
        message: str,
        *,
        requested: int = 0,
        limit: int | None = None,
        live: int = 0,
        holders: tuple[tuple[str, int, int], ...] = (),
        site: tuple[str, ...] = (),
        **fields: Any,
    ) -> None:
        self.requested, self.limit, self.live, self.holders = requested, limit, live, tuple(holders)
        self.site = tuple(site)
        super().__init__(message, **fields)

    def _fields(self) -> dict[str, Any]:
        return {
            "requested": self.requested,
            "limit": self.limit,
            "live": self.live,
            "holders": self.holders,
            "site": self.site,
        } | super()._fields()


class DeviceLostError(BackendError):
    """The device failed for good; every later call on it fails with this first cause.

    Attributes:
        in_flight: labels of the operations that were queued or running when it failed.
    """

    def __init__(self, message: str, *, in_flight: tuple[str, ...] = (), **fields: Any) -> None:
        self.in_flight = tuple(in_flight)
        super().__init__(message, **fields)

    def _fields(self) -> dict[str, Any]:
        return {"in_flight": self.in_flight} | super()._fields()


class InternalError(TazzaError, RuntimeError):
    """tazza broke one of its own rules: a bug of ours, please report it."""


class LeakWarning(ResourceWarning):
    """Something that owns work or memory was dropped where it should have been closed."""


class CleanupWarning(RuntimeWarning):
    """A failure in clean-up that could not be raised where it happened."""


def _rebuild(cls: type[BackendError], message: str, fields: dict[str, Any]) -> BackendError:
    return cls(message, **fields)


def _brief(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"

"""How the command ends: exit codes, and what is said about an error."""

from __future__ import annotations

import enum

from tazza import Device, device
from tazza.errors import (
    ArgumentError,
    BackendUnavailableError,
    CheckpointError,
    DeviceLostError,
    UpstreamError,
)

__all__ = ["ExitCode", "describe", "exit_code", "find_device", "root_cause"]


class ExitCode(enum.IntEnum):
    """What the number says that the command returns."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNAVAILABLE = 3
    OUT_OF_MEMORY = 4
    CHECKPOINT = 5
    LEAKS = 6
    UNHEALTHY = 7
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One phrase for ``--help``."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "failed for another reason than those below",
    ExitCode.USAGE: "wrong command, option or value",
    ExitCode.UNAVAILABLE: "there is no such device, its backend cannot be used here, or it was lost",
    ExitCode.OUT_OF_MEMORY: "no memory within the limits",
    ExitCode.CHECKPOINT: "the checkpoint was refused; the file is untouched",
    ExitCode.LEAKS: "memory was still held when the program had ended, and `--fail-on-leaks` was given",
    ExitCode.UNHEALTHY: "`tazza doctor` found something that breaks programs",
    ExitCode.INTERRUPTED: "interrupted from the keyboard",
}

_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
    (CheckpointError, ExitCode.CHECKPOINT),
    (MemoryError, ExitCode.OUT_OF_MEMORY),
    (BackendUnavailableError, ExitCode.UNAVAILABLE),
    (DeviceLostError, ExitCode.UNAVAILABLE),
    (ArgumentError, ExitCode.USAGE),
)


def find_device(name: str) -> Device:
    """Return the device of that name.

    Raises:
        BackendUnavailableError: there is none, or its backend cannot be used here.
    """
    try:
        return device(name)
    except ArgumentError as error:
        raise BackendUnavailableError(name, f"there is no such device: {error}", "see `tazza devices`") from error


def root_cause(error: BaseException) -> BaseException:
    """Follow tasks that failed because of others to the first failure."""
    while isinstance(error, UpstreamError) and error.cause is not None:
        error = error.cause
    return error


def exit_code(error: BaseException) -> ExitCode:
    """Return the code for an error.

    >>> exit_code(CheckpointError("damaged")).name
    'CHECKPOINT'
    """
    cause = root_cause(error)
    return next((code for kind, code in _CODES if isinstance(cause, kind)), ExitCode.FAILURE)


def describe(error: BaseException) -> str:
    """Return one paragraph for people, without a traceback and without the notes on where it happened.

    >>> describe(KeyError("x"))
    "KeyError: 'x'"
    """
    cause = root_cause(error)
    if isinstance(cause, KeyboardInterrupt):
        return "interrupted"
    return f"{type(cause).__name__}: {cause}"

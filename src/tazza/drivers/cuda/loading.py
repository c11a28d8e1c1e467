"""The bindings and the driver library behind them: loaded on request, initialised once in a process."""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

from tazza.drivers.cuda.status import failure
from tazza.errors import BackendUnavailableError, UnsupportedError

__all__ = ["LIBRARY", "is_emulated", "load", "restore"]

LIBRARY = "libcuda.so.1"
_INSTALL = "pip install 'tazza[cuda13]' ('tazza[cuda12]' for drivers older than 580), and NVIDIA's driver"
_NO_DEVICE, _STUB_LIBRARY = 100, 34

_opened_in: list[int] = []  # the process that initialised the driver: its forked children inherit the module, not CUDA


def load() -> Any:
    """Return `cuda.bindings.driver` with the driver initialised; makes no context.

    Raises:
        BackendUnavailableError: the bindings or the driver are missing, too old, or cannot be used in this process.
    """
    if _opened_in and _opened_in[0] != os.getpid():
        reason = "this process was forked from one that had initialised CUDA"
        raise BackendUnavailableError("cuda", reason, "start processes with multiprocessing's 'spawn'")
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise BackendUnavailableError("cuda", f"no module 'cuda.bindings': {error}", _INSTALL) from error
    try:
        status = api.cuInit(0)[0]
    except RuntimeError as error:  # how the bindings say that the library, or the symbol in it, was not found
        raise BackendUnavailableError("cuda", f"{LIBRARY} cannot be used: {error}", _INSTALL) from error
    if int(status):
        text = str(failure(api, "cuInit", status, 0))
        missing = int(status) in (_NO_DEVICE, _STUB_LIBRARY)
        raise BackendUnavailableError("cuda", text, _INSTALL if missing else "look at `tazza doctor`")
    _opened_in[:] = [os.getpid()]
    return api


def is_emulated() -> bool:
    """Tell whether the loaded driver is an emulator, which says so by a symbol that no real driver has."""
    try:
        return hasattr(ctypes.CDLL(LIBRARY), "emulator_report")
    except OSError:  # known under another name, as on Windows, where there is no emulator
        return False


def restore(ordinal: int) -> None:
    """Have the emulator make a lost device well again; what was in its context is gone."""
    try:
        ctypes.CDLL(LIBRARY).emulator_restore_device(ordinal)
    except AttributeError as error:
        raise UnsupportedError("this emulator cannot make a lost device well again; install a newer one") from error

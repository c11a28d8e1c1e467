"""The bindings and the driver library behind them: loaded on request, initialised once in a process."""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

from tazza.drivers.cuda.status import failure
from tazza.errors import BackendUnavailableError, UnsupportedError
from tazza.util.sharedlibrary import has_library

__all__ = ["LIBRARY", "is_emulated", "load", "restore"]

LIBRARY = "libcuda.so.1"
_BINDINGS = "pip install 'tazza[cuda13]' ('tazza[cuda12]' for drivers older than 580)"
_DRIVER = "install NVIDIA's driver; to test without a GPU: tazza emulate-cuda -- COMMAND"
_HIDDEN = "CUDA_VISIBLE_DEVICES is set and may hide the devices; unset it"
_NO_GPU = "nvidia-smi shows what the driver sees; a container needs --gpus all"
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
        raise BackendUnavailableError("cuda", _reason_of(error), _BINDINGS) from error
    try:
        status = api.cuInit(0)[0]
    except RuntimeError as error:  # how the bindings say that the library, or the symbol in it, was not found
        reason = f"{LIBRARY} cannot be used: {error}" if has_library(LIBRARY) else f"no library {LIBRARY}"
        raise BackendUnavailableError("cuda", reason, _DRIVER) from error
    if int(status):
        raise BackendUnavailableError("cuda", str(failure(api, "cuInit", status, 0)), _hint_for(int(status)))
    _opened_in[:] = [os.getpid()]
    return api


def _reason_of(error: ImportError) -> str:
    missing = isinstance(error, ModuleNotFoundError) and str(error.name or "").partition(".")[0] == "cuda"
    # The name by which `tz.backends()` calls it, which imports nothing.
    return f"no module {error.name!r}" if missing else f"cuda.bindings cannot be imported: {error}"


def _hint_for(status: int) -> str:
    if status == _NO_DEVICE:
        return _HIDDEN if "CUDA_VISIBLE_DEVICES" in os.environ else _NO_GPU
    return _DRIVER if status == _STUB_LIBRARY else "look at `tazza doctor`"


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

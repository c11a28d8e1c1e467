"""Run in a child process: initialise the NVIDIA driver, or ask cuDNN whether its parts fit; never makes a context."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

__all__ = ["main"]

# Version 9, then version 8; each part of cuDNN brings its own check of the parts that it builds on.
_CUDNN_CHECKS = (
    *("cudnnGraphVersionCheck", "cudnnOpsVersionCheck", "cudnnCnnVersionCheck", "cudnnAdvVersionCheck"),
    *("cudnnOpsInferVersionCheck", "cudnnOpsTrainVersionCheck", "cudnnCnnInferVersionCheck"),
    *("cudnnCnnTrainVersionCheck", "cudnnAdvInferVersionCheck", "cudnnAdvTrainVersionCheck"),
)


def main(what: str, path: str) -> None:
    """Try ``"cuda"`` or ``"cudnn"`` at `path`; the call that does not come back is the last that was begun."""
    say(begin="loading")
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        say(error=str(error))
        return
    (_try_cuda if what == "cuda" else _try_cudnn)(library)


def say(**values: Any) -> None:
    """Write one line, at once: the next call may be the last."""
    print(json.dumps(values), flush=True)


def _try_cuda(library: ctypes.CDLL) -> None:
    say(emulated=hasattr(library, "emulator_report"))
    number = ctypes.c_int(0)
    for call, arguments, key in (
        ("cuDriverGetVersion", (ctypes.byref(number),), "cuda"),
        ("cuInit", (0,), None),
        ("cuDeviceGetCount", (ctypes.byref(number),), "devices"),
    ):
        say(begin=call)
        code = getattr(library, call)(*arguments)
        if code:
            say(call=call, code=code)
            return
        if key:
            say(**{key: number.value})
    say(code=0)


def _try_cudnn(library: ctypes.CDLL) -> None:
    say(begin="cudnnGetVersion")
    library.cudnnGetVersion.restype = ctypes.c_size_t
    say(version=library.cudnnGetVersion())
    for name in _CUDNN_CHECKS:
        check = getattr(library, name, None)
        if check is not None:
            say(begin=name)
            say(check=name, code=check())


if __name__ == "__main__":
    main(*sys.argv[1:3])

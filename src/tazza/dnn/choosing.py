"""Which DNN library a context has: by name, or the best that is there for its device."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from tazza.core.context import Context
from tazza.dnn.buffers import BufferDnn
from tazza.dnn.library import Choice, Library
from tazza.dnn.planned import PlannedDnn
from tazza.errors import ArgumentError, BackendUnavailableError
from tazza.hot import after_fork

__all__ = ["LIBRARIES", "dnn_of", "library_named"]

LIBRARIES: dict[str, str] = {
    "onednn": "tazza.dnn.onednn:OnednnLibrary",
    "reference": "tazza.dnn.reference_library:ReferenceLibrary",
}
"""By name, best first: what makes each, or raises `BackendUnavailableError` that says what to install."""

_KINDS = {"onednn": ("cpu", "sim"), "reference": ("cpu", "sim")}
"""Kinds of device that a library is for, where not for all."""

_made: dict[str, Library | BackendUnavailableError] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for name, library in list(_made.items()):
        if isinstance(library, Library) and not library.survives_fork and library.was_used:
            _made[name] = BackendUnavailableError(
                name,
                "it was used before this process was forked, and hangs in a child",
                "start children with multiprocessing's 'spawn' or 'forkserver', or use dnn='reference'",
            )


after_fork(_after_fork)


def library_named(name: str) -> Library:
    """Return a library, loaded when it is first asked for; one of each per process.

    Raises:
        ArgumentError: there is none of this name.
        BackendUnavailableError: it cannot be used here; says why and what to install.
    """
    with _lock:
        found = _made.get(name)
        if found is None:
            if name not in LIBRARIES:
                raise ArgumentError.of("dnn", name, f"'auto' or one of {', '.join((*LIBRARIES, 'cudnn'))}")
            module, attribute = LIBRARIES[name].split(":")
            try:
                found = getattr(importlib.import_module(module), attribute)()
            except BackendUnavailableError as error:
                found = error
            _made[name] = found
    if isinstance(found, BackendUnavailableError):
        raise BackendUnavailableError(found.backend, found.reason, found.hint)
    assert isinstance(found, Library)
    return found


def dnn_of(ctx: Context) -> PlannedDnn | BufferDnn:
    """Return the operations of a context's library.

    ``"auto"`` takes the first that can be used on its device, and the reference for what that one lacks. A library that
    is named does it all, or raises. On CUDA devices that is cuDNN, and nothing stands in for what it lacks.
    """
    wanted, kind = ctx.spec.dnn, ctx.device.kind
    algorithm: Any = "deterministic" if ctx.spec.deterministic else "heuristic"
    if kind == "cuda" and wanted in ("auto", "cudnn"):
        ctx.own_stream.runtime.check()  # before a library is looked for, which a forked child must not do
        cudnn: Any = importlib.import_module("tazza.dnn.cuda.library")
        return BufferDnn(ctx, cudnn.CudnnLibrary.of(ctx.device), Choice(algorithm))
    if wanted == "cudnn":
        raise BackendUnavailableError("cudnn", f"it is for cuda, not for {kind}")
    for name in LIBRARIES if wanted == "auto" else [wanted]:
        try:
            library = library_named(name)
            if kind not in _KINDS.get(name, (kind,)):
                raise BackendUnavailableError(name, f"it is for {' and '.join(_KINDS[name])}, not for {kind}")
            return PlannedDnn(ctx, library, Choice(algorithm), fallback=wanted == "auto")
        except BackendUnavailableError:
            if wanted != "auto":
                raise
    raise AssertionError("the reference needs nothing")  # pragma: no cover

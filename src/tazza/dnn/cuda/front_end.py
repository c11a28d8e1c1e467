"""NVIDIA's front end of cuDNN in this process: the one place that calls it, and makes our errors of what it raises."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, final

from tazza.core.runtime import DeviceRuntime
from tazza.dnn.cuda.serialized import number_of
from tazza.drivers.cuda.libraries import NativeLibrary, check_parts, load_runtime
from tazza.drivers.cuda.loading import is_emulated
from tazza.errors import BackendError, BackendUnavailableError, OutOfMemoryError, TazzaError, UnsupportedError

__all__ = ["FrontEnd", "load_front_end"]

T = TypeVar("T")

_MODULE = "cudnn"
_INSTALL = "pip install nvidia-cudnn-frontend, of the version that plans: see the extra cudnn-plan"
_STATUS = re.compile(r"CUDNN_STATUS_[A-Z0-9_]+")
_LONGEST = 500  # characters of its message; a report of every engine follows

# What pybind11 makes of C++ exceptions, https://pybind11.readthedocs.io/en/stable/advanced/exceptions.html;
# the last two are of a front end whose calls are other ones.
_RAISED = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError, TypeError, AttributeError)


@final
class FrontEnd:
    """The front end, found to use the libcudnn that is in use here.

    Args:
        module: ``cudnn``.
        library: libcudnn.
    """

    def __init__(self, module: Any, library: NativeLibrary) -> None:
        self._module, self.library = module, library
        self.version = str(module.__version__)

    def load(self, runtime: DeviceRuntime, handle: int, serialized: bytes) -> tuple[Any, int]:
        """Return the graph of a serialized plan and the bytes of workspace that it needs.

        The front end tries the plan in a capture of its own on the handle's stream, with a megabyte that it allocates,
        so the handle must be bound to no stream and be in no other thread.

        Raises:
            UnsupportedError, OutOfMemoryError, DeviceLostError, BackendError: cuDNN refuses it, or fails.
        """

        def loaded() -> tuple[Any, int]:
            graph = self._module.pygraph(handle=handle)
            graph.deserialize(handle, list(serialized))  # a sequence of numbers; bytes it takes for none
            return graph, int(graph.get_workspace_size())

        return self._call(runtime, "deserialize", loaded)

    def execute(
        self, runtime: DeviceRuntime, graph: Any, addresses: Mapping[int, int], workspace: int, handle: int
    ) -> None:
        """Enqueue a graph on the handle's stream and return.

        Args:
            runtime: of the device.
            graph: what `load` returned.
            addresses: of the arrays, by their numbers.
            workspace: address.
            handle: bound to the stream; in no other thread.

        Raises:
            UnsupportedError, OutOfMemoryError, DeviceLostError, BackendError: as in `load`.
        """
        self._call(runtime, "execute", lambda: graph.execute(dict(addresses), workspace, handle=handle))

    def _call(self, runtime: DeviceRuntime, name: str, function: Callable[[], T]) -> T:
        driver: Any = runtime.driver
        primary = driver.current(runtime.info)
        primary.check(name)
        with primary:
            try:
                return function()
            except (*_RAISED, self._module.cudnnGraphNotSupportedError) as error:
                traceback.clear_frames(error.__traceback__)  # or whoever keeps the error keeps the graph
                primary.check_whole(name)  # else the error stays what the front end says
                raise self._failure(name, error) from error

    def _failure(self, call: str, error: Exception) -> TazzaError:
        text = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        status = _STATUS.search(text)
        symbol = status[0] if status else ""
        if isinstance(error, MemoryError) or "ALLOC" in symbol:
            return OutOfMemoryError(text, requested=0, backend="cudnn", call=call, symbol=symbol)
        is_lack = symbol.startswith("CUDNN_STATUS_NOT_SUPPORTED") or not symbol  # it also says so of a wrong argument
        if isinstance(error, self._module.cudnnGraphNotSupportedError) and is_lack:
            return UnsupportedError(f"cudnn {call}: {text}")
        return BackendError(text, backend="cudnn", call=call, symbol=symbol)

    def __repr__(self) -> str:
        return f"<FrontEnd {self.version} over {self.library!r}>"


_found: FrontEnd | None = None
_lock = threading.Lock()


def load_front_end(library: NativeLibrary) -> FrontEnd:
    """Return the front end, looked at when it is first asked for.

    Args:
        library: libcudnn, as `load_library` gives it; what the front end uses has to be the same.

    Raises:
        BackendUnavailableError: it is not installed, has found another libcudnn, or cannot run on the emulated driver.
    """
    global _found
    with _lock:
        if _found is None or _found.library is not library:
            _found = FrontEnd(_module(library), library)
        return _found


def _module(library: NativeLibrary) -> Any:
    if is_emulated() and not hasattr(sys.modules.get(_MODULE), "emulated_library"):
        raise BackendUnavailableError(
            "cudnn",
            "NVIDIA's front end does not run on the emulated driver, as the libcudnn that it calls does not",
            "use the plans of CudnnLibrary.compile there, which ctx.dnn does",
        )
    if not library.emulated:
        load_runtime()  # which the front end opens by name, and wheels lie where no loader looks
    try:
        module: Any = importlib.import_module(_MODULE)
    except (ImportError, OSError, AssertionError) as error:  # no such module, no libcudnn, or several, as it asserts
        raise BackendUnavailableError("cudnn", f"no front end: {type(error).__name__}: {error}", _INSTALL) from error
    expected, found = number_of(library.version), module.backend_version()
    if found != expected:
        raise BackendUnavailableError(
            "cudnn",
            f"the front end has found a libcudnn of version {found}, and {library.path} is of version {expected}",
            "install one cuDNN only, and unset LD_LIBRARY_PATH",
        )
    check_parts("cudnn")
    return module

"""Names that are resolved late: backends, array libraries, DNN libraries, context classes.

This is the only place where a module is imported by a string, and so the only upward edge of the import graph. A
backend that fails keeps its reason; the next explicit request tries again.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from tazza.errors import ArgumentError, BackendUnavailableError, TazzaError
from tazza.hot import after_fork
from tazza.spi import Driver
from tazza.util.sharedlibrary import has_library

__all__ = [
    "BackendStatus",
    "adapter_names",
    "backends",
    "driver",
    "install_driver",
    "known",
    "load",
    "load_adapter",
    "names_by_priority",
    "register_backend",
]

ENTRY_POINTS = "tazza.backends"
ADAPTERS = "tazza.adapters"


class BackendStatus(NamedTuple):
    """Whether a backend is usable in this process.

    Attributes:
        name: the backend's name.
        usable: its packages and libraries were found; nothing was initialised to find out.
        reason: why it is not usable, or an empty string.
        hint: what to install or set, or an empty string.
        opened: who initialised its driver first (thread, process, line of code), empty while nobody has.

    >>> import tazza as tz
    >>> tz.backends()[0].name, tz.backends()[0].usable
    ('cpu', True)
    """

    name: str
    usable: bool
    reason: str = ""
    hint: str = ""
    opened: str = ""


class _Record(NamedTuple):
    factory: str | Callable[[], Driver]
    needs: tuple[str, ...] = ()
    hint: str = ""
    priority: int | None = None  # for "auto", larger first; None is never chosen automatically
    libraries: tuple[str, ...] = ()  # files that the system's loader has to find
    library_hint: str = ""  # what to do where it does not


_BUILT_IN: dict[str, _Record] = {
    "cpu": _Record("tazza.drivers.cpu.driver:create_driver", priority=0),
    "cuda": _Record(
        "tazza.drivers.cuda.driver:create_driver",
        needs=("cuda", "cuda.bindings"),
        hint="pip install 'tazza[cuda13]' ('tazza[cuda12]' for drivers older than 580)",
        priority=20,
        libraries=("libcuda.so.1",),
        library_hint="install NVIDIA's driver; to test without a GPU: tazza emulate-cuda -- COMMAND",
    ),
    "sim": _Record("tazza.drivers.sim.driver:create_driver"),
}

_NAMES: dict[str, str] = {
    "arrays.host.numpy": "tazza.arrays.host_numpy:HostNumpy",
    "arrays.host.torch": "tazza.arrays.host_torch:HostTorch",
    "arrays.device.buffers": "tazza.arrays.device_buffers:DeviceBuffers",
    "arrays.device.numpy": "tazza.arrays.device_numpy:DeviceNumpy",
    "capture": "tazza.core.capture:CaptureScope",
    "context.cpu": "tazza.contexts.cpu:CPUContext",
    "context.cuda": "tazza.contexts.cuda:CUDAContext",
    "foreign.export": "tazza.core.export:Exports",
    "foreign.describe": "tazza.core.foreign:describe",
    "dnn": "tazza.dnn.choosing:dnn_of",
    "pages.memory": "tazza.pages.memory:write",
    "pages.torch_snapshot": "tazza.pages.torch_snapshot:write",
    "sim.driver": "tazza.drivers.sim.driver:SimDriver",
    "sim.settings": "tazza.drivers.sim.driver:SimConfig",
}

_ADAPTERS: dict[str, str] = {  # by the top module of the library that each is for
    "cupy": "tazza.adapters.cupy:CupyAdapter",
    "jax": "tazza.adapters.jax:JaxAdapter",
    "numba": "tazza.adapters.numba:NumbaAdapter",
    "onnxruntime": "tazza.adapters.onnxruntime:OnnxruntimeAdapter",
    "pyarrow": "tazza.adapters.pyarrow:PyarrowAdapter",
    "torch": "tazza.adapters.torch:TorchAdapter",
}


class _Table:
    """Mutable state of the registry, made anew in a forked child."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.records: dict[str, _Record] = dict(_BUILT_IN)
        self.drivers: dict[str, Driver] = {}
        self.failures: dict[str, BackendUnavailableError] = {}
        self.opened: dict[str, str] = {}
        self.entry_points_read = False
        self.adapters: dict[str, str] | None = None  # ours and those of entry points, once these were read


_table = _Table()


def _after_fork() -> None:
    records = _table.records
    _table.__init__()  # type: ignore[misc]  # drivers of the parent are not used here, and its locks may be held
    _table.records.update(records)


after_fork(_after_fork)


def register_backend(
    name: str, factory: str | Callable[[], Driver], *, hint: str = "", priority: int | None = None
) -> None:
    """Make a backend known in this process.

    Args:
        name: the part before the colon in ``"npu:0"``.
        factory: ``create_driver`` itself or ``"module:create_driver"``, called when a device is first asked for.
        hint: what to install where it cannot be used.
        priority: for ``"auto"``; larger is preferred, None is never chosen automatically.

    Raises:
        ArgumentError: the name is taken or is not an identifier.
    """
    with _table.lock:
        if not name.isidentifier():
            raise ArgumentError.of("name", name, "an identifier")
        if name in _all_records():
            raise ArgumentError.of("name", name, "a name that no backend has yet")
        _table.records[name] = _Record(factory, hint=hint, priority=priority)


def install_driver(name: str, made: Driver | None) -> None:
    """Replace the driver of a backend for contexts made from now on; None makes the next use create it anew."""
    with _table.lock:
        _table.failures.pop(name, None)
        if made is None:
            _table.drivers.pop(name, None)
        else:
            _table.drivers[name] = made


def driver(name: str) -> Driver:
    """Return the process's driver of a backend, made on first use.

    Raises:
        ArgumentError: no backend has that name.
        BackendUnavailableError: it cannot be used here; says why and what to install.
    """
    with _table.lock:
        made = _table.drivers.get(name)
        if made is None:
            record = _all_records().get(name)
            if record is None:
                raise ArgumentError.of("device", name, f"a backend among {', '.join(sorted(_table.records))}")
            made = _table.drivers[name] = _create(name, record)
        return made


def _create(name: str, record: _Record) -> Driver:
    try:
        factory = _resolve(record.factory) if isinstance(record.factory, str) else record.factory
        made: Driver = factory()
    except BackendUnavailableError as error:
        _table.failures[name] = error
        raise
    except (ImportError, OSError, TazzaError) as error:
        failure = BackendUnavailableError(name, f"{type(error).__name__}: {error}", record.hint)
        _table.failures[name] = failure
        raise failure from error
    _table.failures.pop(name, None)
    _table.opened.setdefault(name, _who())
    return made


def _who() -> str:
    """Thread, process and the innermost line of code outside this package."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "tazza":
        frame = frame.f_back
    where = f", {frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
    return f"thread {threading.current_thread().name!r} of process {os.getpid()}{where}"


def backends() -> tuple[BackendStatus, ...]:
    """Say for each known backend whether it is usable here, and if not, why and what to install.

    Looks only for packages and library files; initialises no driver.

    >>> import tazza as tz
    >>> [status.name for status in tz.backends() if status.usable][0]
    'cpu'
    """
    with _table.lock:
        return tuple(_status(name, record) for name, record in _all_records().items())


def _status(name: str, record: _Record) -> BackendStatus:
    from importlib.util import find_spec  # late: an import of tazza alone asks for no backend

    failure = _table.failures.get(name)
    if failure is not None:
        return BackendStatus(name, False, failure.reason, failure.hint or record.hint)
    modules = (record.factory.partition(":")[0],) if isinstance(record.factory, str) else ()
    for module in (*record.needs, *modules):
        try:
            found = find_spec(module) is not None
        except ImportError:  # a parent package is missing, which is the answer
            found = False
        if not found:
            return BackendStatus(name, False, f"no module {module!r}", record.hint)
    for library in record.libraries:
        if not has_library(library):
            return BackendStatus(name, False, f"no library {library}", record.library_hint)
    return BackendStatus(name, True, opened=_table.opened.get(name, ""))


def names_by_priority() -> list[str]:
    """Backends that ``"auto"`` may choose, the preferred one first."""
    with _table.lock:
        ranked = [(record.priority, name) for name, record in _all_records().items() if record.priority is not None]
    return [name for _, name in sorted(ranked, key=lambda item: -item[0])]


def load(name: str) -> Any:
    """Import what a late-bound name stands for, or raise ArgumentError with the known names."""
    target = _NAMES.get(name)
    if target is None:
        family = name.rpartition(".")[0]
        known = sorted(key.rpartition(".")[2] for key in _NAMES if key.startswith(family + "."))
        raise ArgumentError.of(family or "name", name.rpartition(".")[2], f"one of {', '.join(known) or 'no names'}")
    return _resolve(target)


def known(name: str) -> bool:
    """Tell whether a late-bound name exists, without importing what it stands for."""
    return name in _NAMES


def adapter_names() -> list[str]:
    """The libraries for which an adapter is known: ours, and those of the entry-point group ``tazza.adapters``."""
    return list(_all_adapters())


def load_adapter(library: str) -> Any:
    """Import the class of the adapter for a library that `adapter_names` lists."""
    return _resolve(_all_adapters()[library])


def _all_adapters() -> dict[str, str]:
    with _table.lock:
        if _table.adapters is None:
            import importlib.metadata  # costs as much as the rest of the package together

            _table.adapters = dict(_ADAPTERS)
            for point in importlib.metadata.entry_points(group=ADAPTERS):
                _table.adapters.setdefault(point.name, point.value)
        return _table.adapters


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _all_records() -> dict[str, _Record]:
    if not _table.entry_points_read:
        import importlib.metadata  # costs as much as the rest of the package together

        _table.entry_points_read = True
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
            hint = f"reinstall {point.dist.name}" if point.dist else ""
            _table.records.setdefault(point.name, _Record(point.value, hint=hint))
    return _table.records

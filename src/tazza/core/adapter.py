"""Adapters: what tazza knows of another library in the process: its thread state, its memory, its errors."""

from __future__ import annotations

import abc
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tazza.core import registry
from tazza.hot import after_fork

__all__ = ["Adapter", "ForeignMemory", "adapters"]


@dataclass(frozen=True, slots=True)
class ForeignMemory:
    """What another library's own allocator holds on a device, in bytes.

    Attributes:
        live: in use by its arrays.
        cached: held for reuse; `Adapter.trim` may give it back.
        note: how it was found out, where that matters.
    """

    live: int
    cached: int = 0
    note: str = ""


class Adapter(abc.ABC):  # noqa: B024  nothing in it is for every library
    """One library, once it has been imported by somebody else; tazza never imports it for this.

    Third parties add one through the entry-point group ``tazza.adapters``, named like the library's top module::

        [project.entry-points."tazza.adapters"]
        mylib = "my_package.adapter:MylibAdapter"

    Every method has a default that does nothing, so that an adapter says only what its library has.

    Args:
        library: the imported module.
    """

    def __init__(self, library: ModuleType) -> None:
        self.library: Any = library

    @property
    def name(self) -> str:
        """The library's name."""
        return str(self.library.__name__)

    def bind(self, context: Any) -> Callable[[], None] | None:
        """Set what the library keeps per thread (device, stream, generator) for work on the context's current stream.

        Returns:
            What sets it back, called in the same thread; None where there was nothing to set.
        """
        return None

    def memory(self, device: Any) -> ForeignMemory | None:
        """What the library's own allocator holds on the device; None where that cannot be known. Must be quick."""
        return None

    def trim(self, device: Any) -> None:  # noqa: B027  most have nothing to give back
        """Have the library give cached memory of the device back; never waits."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Tell whether the library means by an exception that there was no memory."""
        return False


class _Loaded:
    """The adapters made so far, by library."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: dict[str, Adapter] = {}


_loaded = _Loaded()
after_fork(_loaded.__init__)  # type: ignore[misc]


def adapters() -> list[Adapter]:
    """The adapters of the libraries that have been imported in this process, in the order of their names."""
    with _loaded.lock:
        for name in registry.adapter_names():
            library = sys.modules.get(name)
            if library is not None and name not in _loaded.made and not _is_being_imported(library):
                _loaded.made[name] = registry.load_adapter(name)(library)
        return [_loaded.made[name] for name in sorted(_loaded.made)]


def _is_being_imported(library: ModuleType) -> bool:
    """Tell whether another thread has not finished importing a library, as Python's import system itself does."""
    return bool(getattr(getattr(library, "__spec__", None), "_initializing", False))

"""A script, folder, archive or module of somebody else's, run as Python itself would run it."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType
from typing import Any, final

from tazza.errors import ArgumentError

__all__ = ["Program", "show_failure"]

_SLICE = 0.25  # seconds between two looks at whether a thread has ended, so that Ctrl-C gets through


@final
@dataclass(frozen=True)
class Program:
    """What to run, and its arguments.

    Attributes:
        target: path of a script, folder or archive; or the name of a module where `is_module`.
        arguments: what it finds in ``sys.argv[1:]``.

    >>> Program.of(["train.py", "--epochs", "3"], None).command
    'train.py --epochs 3'
    """

    target: str
    arguments: tuple[str, ...]
    is_module: bool

    @classmethod
    def of(cls, script: Sequence[str], module: Sequence[str] | None) -> Program:
        """Take a command line apart: a path and its arguments, or what came after ``-m``.

        Raises:
            ArgumentError: neither is there.
        """
        words = list(script if module is None else module)
        if not words:
            expected = "a script and its arguments, or -m and a module"
            raise ArgumentError.of("script" if module is None else "-m", None, expected)
        return cls(words[0], tuple(words[1:]), module is not None)

    @property
    def command(self) -> str:
        """The command as the user gave it."""
        return " ".join([*(["-m"] if self.is_module else []), self.target, *self.arguments])

    @property
    def name(self) -> str:
        """Its name in titles."""
        return self.target if self.is_module else os.path.basename(os.path.abspath(self.target))

    def check(self) -> None:
        """Look whether it is there, without running any of it.

        Raises:
            ArgumentError: there is no such file, or no such module.
        """
        if not self.is_module:
            if not os.path.exists(self.target):
                raise ArgumentError.of("script", self.target, "the path of a Python file, folder or archive")
            return
        sys.path.insert(0, os.getcwd())
        try:
            found = importlib.util.find_spec(self.target.partition(".")[0])
        except (ImportError, ValueError):  # no name of a module at all
            found = None
        finally:
            del sys.path[0]
        if found is None:
            raise ArgumentError.of("-m", self.target, "the name of a module that can be imported from here")

    def run(self) -> None:
        """Run it as ``__main__`` in the calling thread, then wait for the threads that it started, as Python does.

        Whatever it raises passes through, SystemExit too. ``sys.argv``, ``sys.path[0]`` and ``sys.modules`` stay as it
        leaves them: what it registered to run at exit may need them.
        """
        before = set(threading.enumerate())
        sys.argv = [self.target, *self.arguments]
        module = ModuleType("__main__")
        if sys.version_info < (3, 14):  # from then on made when first asked for
            module.__annotations__ = {}
        code = self._load(module)
        sys.modules["__main__"] = module
        try:
            exec(code, module.__dict__)
        finally:
            _join([thread for thread in threading.enumerate() if thread not in before and not thread.daemon])

    def _load(self, module: ModuleType) -> CodeType:
        if self.is_module:
            _set_first_path(os.getcwd())
            spec = _find_module(self.target)
            sys.argv[0] = spec.origin or self.target
            return _code_of(spec, module)
        path = os.path.abspath(self.target)
        if os.path.isdir(path) or not path.endswith((".py", ".pyw", ".pyc")):
            found = PathFinder.find_spec("__main__", [path])
            if found is not None:
                _set_first_path(path)
                return _code_of(found, module)
        _set_first_path(os.path.dirname(os.path.realpath(path)))
        compiled = path.endswith(".pyc")
        loader = SourcelessFileLoader("__main__", path) if compiled else SourceFileLoader("__main__", path)
        vars(module).update(__file__=path, __loader__=loader, __cached__=None)
        if isinstance(loader, SourcelessFileLoader):
            code = loader.get_code("__main__")
            assert code is not None
            return code
        return compile(loader.get_data(path), path, "exec", dont_inherit=True)

    @staticmethod
    def exit_functions() -> int:
        """How many functions are registered to run at exit."""
        return atexit._ncallbacks()

    @staticmethod
    def finish(functions: int, *, own_process: bool) -> bool:
        """Do what Python does when a program has ended: run its exit functions, and drop the names of ``__main__``.

        What a module-level name holds is no leak, so that this comes before anybody looks.

        Args:
            functions: what `exit_functions` said before the run.
            own_process: the process is there for this program alone. Otherwise exit functions wait for the exit of the
                process, and where the program registered any they may need the names, which then stay.

        Returns:
            Whether the names were dropped.
        """
        if own_process:
            atexit._run_exitfuncs()
        elif atexit._ncallbacks() != functions:
            return False
        names = vars(sys.modules["__main__"])
        for name in [name for name in names if not (name.startswith("__") and name.endswith("__"))]:
            del names[name]
        gc.collect()
        return True


def show_failure(error: BaseException, *, whole: bool) -> None:
    """Show an exception that ended a program, through ``sys.excepthook``, without the frames of this command.

    Args:
        whole: with them.
    """
    frame = error.__traceback__
    while not whole and frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("tazza.cli"):
        frame = frame.tb_next
    error.__traceback__ = frame
    try:
        sys.excepthook(type(error), error, frame)
    except Exception:  # the program's own hook failed: show both, as Python does
        print("Error in sys.excepthook:", file=sys.stderr)
        traceback.print_exc()
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, frame)


def _find_module(name: str) -> ModuleSpec:
    """Find a module, importing the packages above it; of a package its ``__main__``."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return spec


def _code_of(spec: ModuleSpec, module: ModuleType) -> CodeType:
    loader: Any = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None:
        raise ImportError(f"{spec.name!r} has no Python code to run", name=spec.name)
    values = {"__loader__": loader, "__file__": spec.origin, "__cached__": spec.cached, "__package__": spec.parent}
    vars(module).update(values, __spec__=spec)
    return code  # type: ignore[no-any-return]


def _set_first_path(folder: str) -> None:
    """Put the program's folder where Python put that of this command; with ``-P`` it put none."""
    if sys.flags.safe_path:
        return
    sys.path[:1] = [folder]


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(_SLICE)

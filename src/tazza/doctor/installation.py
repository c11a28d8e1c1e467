"""The interpreter and this installation of tazza."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import tazza as tz
from tazza import config, hot
from tazza.doctor.facts import Backend, Python, Tazza, Variable
from tazza.errors import ArgumentError

__all__ = ["examine_python", "examine_tazza", "examine_variables", "stale_files"]

_SLACK = 1.0  # seconds; an installer writes source and compiled file one after the other
# Read at installation and by the test suite, not by the package.
_ELSEWHERE = ("TAZZA_COMPILE", "TAZZA_CUDNN", "TAZZA_FULL", "TAZZA_INTEROP")


def examine_python(threads: int | None) -> Python:
    """Describe the interpreter; `threads` are those of the examined process."""
    chosen = multiprocessing.get_start_method(allow_none=True)  # asking for the default would choose it
    gil = getattr(sys, "_is_gil_enabled", None)
    return Python(
        version=platform.python_version(),
        platform=platform.platform(),
        libc=" ".join(platform.libc_ver()).strip(),
        debug=hasattr(sys, "gettotalrefcount"),
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        gil=gil is None or gil(),
        start_method=chosen or multiprocessing.get_all_start_methods()[0],
        threads=threads,
    )


def examine_tazza(environ: Mapping[str, str]) -> Tazza:
    """Describe this installation; looks for backends without initialising them."""
    known = _known_variables()
    return Tazza(
        version=tz.__version__,
        compiled=hot.COMPILED,
        stale=stale_files(Path(hot.__file__).parent),
        backends=tuple(Backend(one.name, one.usable, one.reason, one.hint) for one in tz.backends()),
        variables=examine_variables(environ, known),
        known_variables=known,
    )


def stale_files(folder: Path) -> tuple[str, ...]:
    """Compiled files in a folder that are older than the source beside them; in a working copy only."""
    if {"site-packages", "dist-packages"} & set(folder.parts):
        return ()
    return tuple(sorted(compiled.name for compiled, source in _pairs(folder) if _age(source) > _age(compiled) + _SLACK))


def _pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    for compiled in folder.glob(f"*{suffix}"):
        for ending in (".py", ".pyx", ".pxd"):
            source = compiled.with_name(compiled.name.removesuffix(suffix) + ending)
            if source.is_file():
                yield compiled, source
                break


def _age(path: Path) -> float:
    return path.stat().st_mtime


def examine_variables(environ: Mapping[str, str], known: tuple[str, ...]) -> tuple[Variable, ...]:
    """The variables of tazza that are set, each tried."""
    names = sorted(name for name in environ if name.startswith("TAZZA_") and environ[name])
    return tuple(
        Variable(name, environ[name], name in known, _problem(name, environ[name]) if name in known else "")
        for name in names
    )


def _known_variables() -> tuple[str, ...]:
    listed = re.findall(r"^\| ``(TAZZA_\w+)``", config.__doc__ or "", re.MULTILINE)
    return (*listed, *_ELSEWHERE)


def _problem(name: str, value: str) -> str:
    if name == "TAZZA_DEVICE":
        kinds = [backend.name for backend in tz.backends()]
        if value.partition(":")[0] not in (*kinds, "auto"):
            return str(ArgumentError.of(name, value, f"a device of the backends {', '.join(kinds)}"))
    read = getattr(config, name.removeprefix("TAZZA_").lower(), None)
    if read is None or os.environ.get(name) != value:
        return ""
    try:
        read()
    except ArgumentError as error:
        return str(error)
    return ""

"""The public surface: pinned, documented, with an example each that runs, and typed."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
import subprocess
import sys
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tazza as tz

ALL: tuple[str, ...] = tuple(getattr(tz, "__all__", ()))
PUBLIC = {name: getattr(tz, name) for name in ALL}
OBJECTS = [name for name, value in PUBLIC.items() if inspect.isclass(value) or callable(value)]


def test_all_is_what_is_visible() -> None:
    visible = {name for name, value in vars(tz).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert set(ALL) - {"__version__"} == visible | {n for n, v in PUBLIC.items() if isinstance(v, ModuleType)}


def test_all_is_sorted_and_has_no_doubles() -> None:
    assert ALL
    assert list(ALL) == sorted(set(ALL), key=_constants_classes_rest)


def _constants_classes_rest(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_no_submodule_hides_a_public_name() -> None:
    """A submodule becomes an attribute of the package when it is first imported, whenever that is."""
    code = (
        "import importlib, sys, tazza as tz\n"
        "before = {name: getattr(tz, name) for name in tz.__all__}\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "print(*[name for name in before if getattr(tz, name) is not before[name]])"
    )
    submodules = [f"tazza.{info.name}" for info in pkgutil.iter_modules(tz.__path__) if info.name != "__main__"]
    command = [sys.executable, "-c", code, *submodules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not done.stdout.split(), "these public names turn into modules"


@pytest.mark.parametrize("name", OBJECTS)
def test_public_objects_are_documented(name: str) -> None:
    value = PUBLIC[name]
    doc = inspect.getdoc(value) or ""
    assert doc.strip(), f"tazza.{name} has no docstring"
    if inspect.isclass(value) and not issubclass(value, BaseException):
        assert ">>>" in doc, f"the docstring of tazza.{name} has no example"
        bare = [m for m, member in public_members(value) if not (inspect.getdoc(member) or "").strip()]
        assert not bare, f"members of tazza.{name} without a docstring: {bare}"


@pytest.mark.parametrize("name", OBJECTS)
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example may use ``tz``, ``np`` and the names of its own module."""
    monkeypatch.chdir(tmp_path)
    value = PUBLIC[name]
    known = {**vars(sys.modules[value.__module__]), "tz": tz, "np": np}
    members = public_members(value) if inspect.isclass(value) else []
    texts = [(name, value), *((f"{name}.{member}", code) for member, code in members)]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for label, item in texts:
        doc = inspect.getdoc(item) or ""
        test = doctest.DocTestParser().get_doctest(doc, known, f"tazza.{label}", None, None)
        report: list[str] = []
        runner.run(test, out=report.append)
        assert not runner.failures, "".join(report)


def public_members(cls: type) -> list[tuple[str, object]]:
    """The public methods and properties that a class of this package defines itself."""
    return [
        (name, member)
        for name, member in vars(cls).items()
        if name[0] != "_" and (callable(member) or isinstance(member, property | classmethod | staticmethod))
    ]


def test_type_information_is_shipped() -> None:
    assert resources.files("tazza").joinpath("py.typed").is_file()


def test_version_is_the_installed_one() -> None:
    assert tz.__version__ == version("tazza")

"""Read the project's sources as data: which module imports which, without running any of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tazza"

# The declaration and extension files of Cython are not Python, but import all the same.
_CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+(tazza[\w.]*)\s+c?import\s+(.+)|c?import\s+(tazza[\w.]*))", re.MULTILINE)
_CIMPORTS = "cython.cimports."


def python_files(*folders: str) -> list[Path]:
    """Every Python file of the named folders of the repository, in a fixed order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """``tazza.core.event`` for ``src/tazza/core/event.py``; a package for its ``__init__``."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Each module of the package with the modules of the package that it names in an import.

    Imports inside functions and under ``TYPE_CHECKING`` count as well. A name imported from a package counts as the
    submodule of that name if there is one, else as the package.
    """
    paths = [path for suffix in ("py", "pyx", "pxd") for path in sorted(SOURCE.rglob(f"*.{suffix}"))]
    graph: dict[str, set[str]] = {module_name(path): set() for path in paths}
    for path in paths:
        name = module_name(path)
        found = _python_imports(path) if path.suffix == ".py" else _cython_imports(path)
        graph[name] |= {_resolve(target, graph) for target in found} - {name}
    return graph


def _python_imports(path: Path) -> Iterator[str]:
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        own = [target.removeprefix(_CIMPORTS) for target in targets]
        yield from (target for target in own if target.split(".")[0] == "tazza")


def _cython_imports(path: Path) -> Iterator[str]:
    for base, names, whole in _CYTHON_IMPORT.findall(path.read_text("utf-8")):
        yield from [whole] if whole else [f"{base}.{name.split()[0]}" for name in names.strip("()").split(",") if name]


def _resolve(target: str, graph: dict[str, set[str]]) -> str:
    while target not in graph and "." in target:
        target = target.rpartition(".")[0]
    return target

"""Python packages that matter: what the metadata list, and what an import would really take."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tazza.doctor.distributions import Installed
from tazza.doctor.facts import Package
from tazza.doctor.versions import canonical, holds, parse_requirement
from tazza.drivers.cpu.cgroups import read

__all__ = ["WATCHED", "find_packages"]

# The distributions that bring a module; of several only one may be installed.
WATCHED: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "torch": ("torch",),
    "jax": ("jax",),
    "cupy": ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"),
    "dpctl": ("dpctl",),
    "dpnp": ("dpnp",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "pyarrow": ("pyarrow",),
    "array_api_compat": ("array-api-compat",),
    "threadpoolctl": ("threadpoolctl",),
}
_VERSION = re.compile(r"^(?:__version__|version)\s*(?::\s*\w+\s*)?=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)
_CUDA = re.compile(r"^cuda(?:_version)?\s*(?::[^=\n]*)?=\s*['\"](\d[\d.]*)", re.MULTILINE)


def find_packages(search_path: Sequence[str], listed: Iterable[Installed]) -> tuple[Package, ...]:
    """Look at each watched package without importing it; those that are not there are left out.

    Args:
        search_path: where an import would look, in its order.
        listed: what `installed` returned for it.
    """
    importlib.invalidate_caches()  # files may have come since this process looked last
    by_name: dict[str, list[Installed]] = {}
    for distribution in listed:
        by_name.setdefault(canonical(distribution.name), []).append(distribution)
    versions = {name: found[0].version for name, found in by_name.items()}
    packages = []
    for module, names in WATCHED.items():
        found = [distribution for name in names for distribution in by_name.get(name, ())]
        path = _origin(module, search_path)
        if found or os.path.isfile(path):
            packages.append(_package(module, found, path, versions))
    return tuple(packages)


def _origin(module: str, search_path: Sequence[str]) -> str:
    """The file that an import would take; for a folder without ``__init__.py`` the folder."""
    spec = importlib.machinery.PathFinder.find_spec(module, [folder or os.getcwd() for folder in search_path])
    if spec is None:
        return ""
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "")


def _package(module: str, found: list[Installed], path: str, versions: Mapping[str, str]) -> Package:
    folders = tuple(distribution.folder for distribution in found)
    home = _home(module, path)
    editable = any("editable" in distribution.read("direct_url.json") for distribution in found)
    own = not path or editable or os.path.realpath(home) in map(os.path.realpath, folders)
    leftover = bool(path) and not path.endswith((".py", ".pyc", ".so", ".pyd"))
    return Package(
        module=module,
        distributions=tuple(str(distribution) for distribution in found),
        folders=folders,
        version=found[0].version if found else "",
        path=path,
        file_version=_file_version(path),
        shadowed=bool(found) and (not own or leftover),
        missing=bool(found) and not path and not editable,
        cuda=_built_for(module, found, path, versions),
        unmet=tuple(_unmet(found[0], versions)) if found else (),
    )


def _home(module: str, path: str) -> str:
    """The folder on the path in which an import found the module."""
    inner = Path(path)
    return str(inner.parent.parent if inner.parent.name == module and inner.suffix else inner.parent)


def _file_version(path: str) -> str:
    """The version that the source states in one of the usual places, or an empty string."""
    file = Path(path)
    beside = ("version.py", "_version.py", "__init__.py") if file.name == "__init__.py" else (file.name,)
    for name in beside:
        match = _VERSION.search(read(file.with_name(name)) or "") if name.endswith(".py") else None
        if match:
            return match[1]
    return ""


def _built_for(module: str, found: list[Installed], path: str, versions: Mapping[str, str]) -> str:
    """The CUDA version that a package was built for: written in its files, or in its name."""
    folder = Path(path).parent
    for name in ("version.py", "capi/build_and_package_info.py") if path and module != "numpy" else ():
        match = _CUDA.search(read(folder / name) or "")
        if match:
            return match[1].rstrip(".")
    # CuPy's own name says it; JAX brings CUDA in a package beside it.
    names = [canonical(found[0].name)] if found else []
    names += [name for name in versions if name.startswith(f"{module}-cuda")]
    matches = [re.search(r"-cuda(\d+)", name) for name in names]
    return next((match[1] for match in matches if match), "")


def _unmet(distribution: Installed, versions: Mapping[str, str]) -> list[str]:
    """Requirements on native packages and on watched ones that are installed in another version."""
    watched = {name for names in WATCHED.values() for name in names}
    unmet = []
    for text in distribution.requires:
        requirement = parse_requirement(text)
        if requirement is None:
            continue
        name, clauses = requirement
        if (name in watched or name.startswith("nvidia-")) and name in versions and not holds(clauses, versions[name]):
            unmet.append(f"{name}{clauses} (installed: {versions[name]})")
    return unmet

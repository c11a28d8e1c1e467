"""Find out the facts: read files, ask libraries, and try in child processes what may crash or hang."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from tazza.doctor.checks_machine import THREAD_VARIABLES
from tazza.doctor.child_imports import process_facts
from tazza.doctor.children import Child, run_child
from tazza.doctor.distributions import installed
from tazza.doctor.driver import examine_driver
from tazza.doctor.facts import Facts, Imported, ThreadPool
from tazza.doctor.installation import examine_python, examine_tazza
from tazza.doctor.libraries import Owners, find_libraries, loader_folders, parse_maps
from tazza.doctor.machine import examine_limits, examine_memory, examine_processors
from tazza.doctor.packages import find_packages
from tazza.drivers.cpu.cgroups import read

__all__ = ["Sources", "collect"]

_ENVIRONMENT = (
    *THREAD_VARIABLES,
    *("CUDA_VISIBLE_DEVICES", "KMP_DUPLICATE_LIB_OK", "LD_LIBRARY_PATH", "LD_PRELOAD", "MKL_THREADING_LAYER"),
    *("OMP_THREAD_LIMIT", "ONEAPI_DEVICE_SELECTOR"),
)


@final
@dataclass(frozen=True, slots=True)
class Sources:
    """Where facts come from; by default this process and its system.

    Attributes:
        root: where the file system begins.
        search_path: where Python looks for modules.
        environ: environment variables.
    """

    root: Path = Path("/")
    search_path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def collect(sources: Sources, modules: Sequence[str] = (), *, timeout: float) -> Facts:
    """Find out everything.

    Args:
        sources: where to look.
        modules: to import in a child process, which then is the examined process instead of this one.
        timeout: seconds for each child process.
    """
    child = run_child("child_imports.py", modules, timeout=timeout) if modules else None
    seen = next((said for said in child.said if "maps" in said), None) if child is not None else None
    subject = f"a child process after import of {', '.join(modules)}" if seen else "this process"
    process = seen or _own_process(sources.root)
    folders = loader_folders(sources.root, sources.environ)
    distributions = installed(sources.search_path)
    pools = _pools(process)
    loaded = parse_maps(process["maps"]) or {pool.path: False for pool in pools}
    versions = {os.path.realpath(pool["filepath"]): pool["version"] or "" for pool in process["pools"] or ()}
    libraries = find_libraries(loaded, versions, folders, Owners(distributions, sources.root))
    return Facts(
        subject=subject,
        python=examine_python(process["threads"]),
        tazza=examine_tazza(sources.environ),
        processors=examine_processors(sources.root),
        memory=examine_memory(sources.root),
        limits=examine_limits(sources.root),
        driver=examine_driver(sources.root, folders, libraries, timeout=timeout),
        libraries=libraries,
        pools=pools,
        packages=find_packages(sources.search_path, distributions),
        imports=_imports(modules, child) if child is not None else (),
        environment=tuple((name, sources.environ[name]) for name in _ENVIRONMENT if sources.environ.get(name)),
        preloaded=_preloaded(sources.environ, folders),
        unknown=_unknown(sources.root, process),
    )


def _own_process(root: Path) -> dict[str, Any]:
    facts = process_facts()
    if root != Path("/"):
        facts["maps"] = read(root / "proc/self/maps") or ""
    return facts


def _pools(process: dict[str, Any]) -> tuple[ThreadPool, ...]:
    return tuple(
        ThreadPool(pool["prefix"], pool["filepath"], pool["num_threads"] or 1) for pool in process["pools"] or ()
    )


def _imports(modules: Sequence[str], child: Child) -> tuple[Imported, ...]:
    """What became of each module; one that was begun and not answered for is where the child ended."""
    answers = {said["module"]: said for said in child.said if "module" in said}
    begun = {said["begin"] for said in child.said if "begin" in said}
    imports = []
    for name in modules:
        answer = answers.get(name)
        if answer is not None and "error" in answer:
            imports.append(Imported(name, "failed", answer["error"]))
        elif answer is not None:
            imports.append(Imported(name, "fine", version=answer["version"], path=answer["path"]))
        elif name in begun:
            imports.append(Imported(name, child.state, child.detail))
        else:
            imports.append(Imported(name, "not reached", "an import before it ended the process"))
    return tuple(imports)


def _preloaded(environ: Mapping[str, str], folders: Sequence[Path]) -> tuple[tuple[str, bool], ...]:
    names = environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return tuple((name, any((folder / name).is_file() for folder in (Path(), *folders))) for name in names)


def _unknown(root: Path, process: dict[str, Any]) -> tuple[str, ...]:
    unknown = []
    if not process["maps"]:
        unknown.append("loaded libraries other than those with thread pools: this system has no /proc/self/maps")
    if process["pools"] is None:
        unknown.append("thread pools: threadpoolctl is missing, or a library did not answer it")
    if not (root / "proc/self/limits").is_file():
        unknown.append("limits of the process and of its control groups: this system has no /proc")
    return tuple(unknown)

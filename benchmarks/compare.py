"""The peers: what a user would pick instead of tazza, loaded only if installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

from benchmarks.harness import Case, Missing

__all__ = ["peer", "versions"]

PACKAGES = ("numpy", "torch", "jax", "pyopencl", "onnxruntime", "onednn-cpu-gomp")


def peer(case: str, module: str, build: Callable[[ModuleType], Case]) -> Case | Missing:
    """Build a case that needs a third-party module, or say that it is not installed.

    Args:
        case: the case's id, for when it is missing.
        module: the module to import.
        build: called with the imported module.
    """
    try:
        imported = importlib.import_module(module)
    except ImportError:
        return Missing(case, f"{module.partition('.')[0]} is not installed; pip install '.[bench]'")
    try:
        return build(imported)
    except RuntimeError as error:  # installed, but without a device or driver that it needs
        return Missing(case, f"{module.partition('.')[0]} cannot run here: {error}")


def versions() -> dict[str, str]:
    """Installed versions of the peers; absent ones are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # reported case by case as not installed
    return found

"""Libraries of the extra ``interop``, for the tests that are marked so.

Where one is not installed its tests are skipped with the reason; ``TAZZA_INTEROP=1``, which `.ci/run` sets in the
environment that has all of them, makes that an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

__all__ = ["folder", "need"]

REQUIRED = os.environ.get("TAZZA_INTEROP") == "1"


def need(name: str) -> Any:
    """Import a library, or skip the test module that asks for it."""
    if importlib.util.find_spec(name) is None and not REQUIRED:
        pytest.skip(f"{name} is not installed; pip install '.[interop]'", allow_module_level=True)
    return importlib.import_module(name)


def folder(name: str) -> Path:
    """Where a package lies that is only used for its data, and not imported; or skip the test module that asks."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        if REQUIRED:
            raise ModuleNotFoundError(f"{name} is not installed; pip install '.[interop]'", name=name)
        pytest.skip(f"{name} is not installed; pip install '.[interop]'", allow_module_level=True)
    return Path(found.submodule_search_locations[0])

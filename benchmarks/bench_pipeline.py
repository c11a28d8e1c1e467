"""The data-processing guide's pipeline: read-ahead against one stream, and against plain PyArrow and NumPy."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

from benchmarks.harness import Area, Budget, Case, Missing

SCRIPT = Path(__file__).parents[1] / "examples" / "tpch_pipeline.py"
LIMIT = "256MiB"
SCALE, ROW_GROUP = 0.2, "8MiB"


def example() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("tpch_pipeline", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tpch_pipeline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def area() -> Area:
    """One run of each form; a run takes a large part of a second, whatever the length of a sample."""
    ids = ("pipeline.query1.overlapped", "pipeline.query1.serial", "pipeline.query1.plain")
    budgets = [Budget(ids[0], ids[1], at_most=0.9), Budget(ids[1], ids[2], at_most=1.1, gated=False)]
    if importlib.util.find_spec("pyarrow") is None:
        return Area([Missing(one, "pyarrow is not installed") for one in ids], budgets)
    if not (Path(sysconfig.get_path("scripts")) / "tpchgen-cli").exists():
        return Area([Missing(one, "tpchgen-cli is not installed") for one in ids], budgets)
    module = example()
    path = module.generate(SCALE, Path(tempfile.gettempdir()) / "tazza-tpch", ROW_GROUP)
    names = {"example": module, "path": path, "limit": LIMIT}
    cases = [
        Case(ids[0], "example.pipeline(path, limit)", names),
        Case(ids[1], "example.pipeline(path, limit, overlapped=False)", names),
        Case(ids[2], "example.plain(path)", names),
    ]
    return Area(cases, budgets)

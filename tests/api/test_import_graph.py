"""Import arrows go down only: DESIGN's layers, no cycle, backends that know nothing but the waist."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.api import modules

GRAPH = modules.import_graph()

# A module may import from its own layer (without cycles) and from lower ones.
LAYERS = (
    ("_version", "config", "errors", "typing", "util"),
    ("spi",),
    ("drivers", "hot", "memory", "rng"),
    ("core",),
    ("adapters", "arrays", "contexts", "dnn"),
    ("check", "cluster", "demo", "doctor", "pages", "testing"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# In the core each file imports only files to its left.
CORE = (
    *(
        "registry",
        "adapter",
        "snapshot",
        "device",
        "dtypes",
        "completion",
        "waiting",
        "event",
        "failures",
        "submission",
    ),
    *("pressure", "runtime", "runner", "native"),
    *("stream", "holders", "patience", "segment", "supply", "hostmemory", "pool"),
    *("admission", "budget", "charge", "recording", "survey", "memory"),
    "generator",
    *("arraylib", "task", "kernel", "arguments"),
    *("side", "strided", "moving", "transfer"),
    *("placer", "statefile", "states", "progress"),
    *("compiled", "graph", "capture"),
    *("health", "scope", "launching", "shortage", "binding", "spec", "context", "opening", "current"),
    *("dlpack", "export", "foreign", "loan", "borrow", "timeline", "tracefile", "trace", "shutdown"),
)


def area(module: str) -> str:
    """The part of the package that a module belongs to; the package itself is the façade on top of the core."""
    return module.split(".")[1] if "." in module else ""


def edges() -> list[tuple[str, str]]:
    """Every import of the package by the package, in a fixed order."""
    return [(source, target) for source in sorted(GRAPH) for target in sorted(GRAPH[source])]


def test_there_is_no_cycle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


def test_every_part_has_a_layer() -> None:
    parts = {area(module) for module in GRAPH} - {""}
    assert parts <= set(RANK), f"parts without a layer: {sorted(parts - set(RANK))}; add them to LAYERS in this file"


def test_imports_go_down_only() -> None:
    wrong = [
        f"{source} -> {target}"
        for source, target in edges()
        if area(source) and area(target) and RANK[area(source)] < RANK[area(target)]
    ]
    assert not wrong, "imports that go up:\n" + "\n".join(wrong)


def test_only_parts_above_the_core_import_the_facade() -> None:
    wrong = [source for source, target in edges() if target == "tazza" and RANK[area(source)] <= RANK["core"]]
    assert not wrong, f"modules that import the façade from below it: {wrong}"


def test_the_facade_imports_nothing_optional() -> None:
    wrong = [target for target in GRAPH["tazza"] if RANK[area(target)] > RANK["contexts"]]
    assert not wrong, f"tazza/__init__.py must not import {wrong}"


def test_backends_import_the_waist_only() -> None:
    def backend(module: str) -> str:
        return ".".join(module.split(".")[:3])

    wrong = [
        f"{source} -> {target}"
        for source, target in edges()
        if area(source) == "drivers" and RANK[area(target)] > RANK["spi"] and backend(target) != backend(source)
    ]
    assert not wrong, "backends import spi and what lies below it, never each other:\n" + "\n".join(wrong)


def test_the_middle_layers_do_not_know_each_other() -> None:
    # hot stands beside memory: it compiles memory's fast paths and may use its algorithms, not the reverse.
    wrong = [
        f"{source} -> {target}"
        for source, target in edges()
        if {area(source), area(target)} <= {"hot", "memory", "rng"}
        and area(source) != area(target)
        and (area(source), area(target)) not in {("hot", "memory"), ("rng", "hot")}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_is_in_one_line() -> None:
    def place(module: str) -> int:
        return CORE.index(module.split(".")[2])

    core = {module for module in GRAPH if area(module) == "core" and module != "tazza.core"}
    unknown = sorted(module for module in core if module.split(".")[2] not in CORE)
    assert not unknown, f"core modules without a place in CORE of this file: {unknown}"
    wrong = [
        f"{source} -> {target}"
        for source, target in edges()
        if {source, target} <= core and place(target) > place(source)
    ]
    assert not wrong, "core modules import only what stands to their left:\n" + "\n".join(wrong)


def test_the_reader_sees_hidden_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tazza"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from tazza.b import x\n")
    (package / "b.py").write_text("if TYPE_CHECKING:\n    from . import c\n    from cython.cimports.tazza.d import x\n")
    (package / "c.py").write_text("import os, tazza.a\n")
    (package / "d.py").write_text("")
    (package / "d.pxd").write_text("from tazza.c cimport (X)\n")
    monkeypatch.setattr(modules, "SOURCE", package)
    graph = modules.import_graph()
    assert graph == {
        "tazza": set(),
        "tazza.a": {"tazza.b"},
        "tazza.b": {"tazza.c", "tazza.d"},
        "tazza.c": {"tazza.a"},
        "tazza.d": {"tazza.c"},
    }
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()

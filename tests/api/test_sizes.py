"""Small files and functions: what does not fit on a few screens is two things."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.api.modules import ROOT, python_files

FILES = [*python_files("src", "tests", "benchmarks", "examples"), ROOT / "setup.py"]
MAX_FILE, MAX_FUNCTION = 500, 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text("utf-8")
    lines = source.count("\n")
    assert lines < MAX_FILE, f"{path.name} has {lines} lines; split it by subject"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length < MAX_FUNCTION, f"{path.name}:{node.lineno}: {node.name} has {length} lines"

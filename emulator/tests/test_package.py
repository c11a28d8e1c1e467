"""The package: its public names, and that a wheel has every file of it."""

import tomllib
from pathlib import Path

import cuda_emulator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cuda_emulator"


def test_the_public_names() -> None:
    assert set(cuda_emulator.__all__) == {
        "BuildError",
        "Emulator",
        "EmulatorError",
        "Fault",
        "Settings",
        "StartError",
        "compile_kernels",
        "environment",
        "libraries",
        "library",
        "start",
        "start_with",
        "started",
    }
    assert all(hasattr(cuda_emulator, name) for name in cuda_emulator.__all__)


def test_a_wheel_has_every_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = [*project["tool"]["setuptools"]["package-data"]["cuda_emulator"], "*.py"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    hidden = ("__pycache__", ".clang-format")
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and not set(hidden) & set(path.parts)}
    assert there == packed


def test_no_file_is_long() -> None:
    files = [path for path in ROOT.rglob("*") if path.suffix in (".py", ".c", ".h", ".hpp") and path.is_file()]
    assert [path for path in files if len(path.read_text().splitlines()) >= 500] == []

"""Building: the cache, processes that build at once, and every way in which a machine may lack something."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_emulator import BuildError, build, compile_kernels
from cuda_emulator.build import cached, library
from cuda_emulator.compiler import find_c_compiler

BUILD = "import sys, pathlib, cuda_emulator.build as b; b.SOURCES = pathlib.Path(sys.argv[1]); print(b.library())"


@pytest.fixture(autouse=True)
def small_driver(small_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SOURCES", small_sources)
    monkeypatch.setenv("CUDA_EMULATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_EMULATOR_CFLAGS", "-O0")  # a third of the time


def test_what_has_an_implementation_works_and_what_has_none_says_so() -> None:
    driver = ctypes.CDLL(str(library()))
    assert (driver.cuInit(0), driver.cuInit(1)) == (0, 1)
    assert driver.cuMemAlloc_v2(None, ctypes.c_size_t(1)) == 801
    assert driver.cuStreamSynchronize_ptsz(None) == 801


def test_the_second_time_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    first = library()
    monkeypatch.setattr("cuda_emulator.build.generate", None)
    assert library() == first


@pytest.mark.parametrize("change", ["source", "flags", "compiler"])
def test_what_the_library_is_made_from_is_its_key(
    change: str, small_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = library()
    if change == "source":
        (small_sources / "call.h").write_text((small_sources / "call.h").read_text() + "\n")
    elif change == "flags":
        monkeypatch.setenv("CUDA_EMULATOR_CFLAGS", "-O1")
    else:
        other = tmp_path / "other-cc"
        real = find_c_compiler().command[0]
        other.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo other && exit\nexec {real} "$@"\n')
        other.chmod(0o755)
        monkeypatch.setenv("CC", str(other))
    assert library() != first


def test_processes_that_build_at_once_share_one_result(small_sources: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(small_sources)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate(timeout=100)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(paths) == 1
    assert os.listdir(tmp_path / "cache") == [Path(paths.pop()).parent.name]


def test_who_comes_second_takes_what_is_there(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        (folder / "made-by").write_text("the slow one")
        cached("thing", fast)

    def fast(folder: Path) -> None:
        (folder / "made-by").write_text("the fast one")

    assert (cached("thing", slow) / "made-by").read_text() == "the fast one"
    assert os.listdir(tmp_path / "cache") == ["thing"]


def test_a_build_that_fails_leaves_nothing_and_says_why(small_sources: Path, tmp_path: Path) -> None:
    (small_sources / "broken.c").write_text("int oops = ;")
    with pytest.raises(BuildError, match=r"(?s)failed with exit code 1.*broken\.c.*error"):
        library()
    assert os.listdir(tmp_path / "cache") == []


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BuildError, match=r"no C compiler .*cc, gcc, clang.*apt-get install g"):
        library()
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        compile_kernels('extern "C" __global__ void k() {}')


def test_with_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-cc -m64")
    with pytest.raises(BuildError, match="looked for CC=no-such-cc -m64"):
        library()


def test_without_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuda_emulator.header._candidates", lambda environ: iter(()))
    with pytest.raises(BuildError, match="pip install nvidia-cuda-runtime"):
        library()


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUDA_EMULATOR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="CUDA_EMULATOR_CACHE names another folder"):
        library()


def test_the_sources_compile_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SOURCES", Path(build.__file__).parent / "c")
    monkeypatch.setenv("CUDA_EMULATOR_CFLAGS", "-O0 -fsyntax-only -Wall -Wextra -Werror")
    # Nothing is linked, so the last step is that there is no library.
    assert not library().exists()

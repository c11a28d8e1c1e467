"""The stand-in for the driver's library: it is built where a compiler is, and tells the truth."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tazza.dnn.cudnn import stub
from tazza.dnn.cudnn.stub import SOURCE, build_stub, default_cache
from tazza.errors import BackendUnavailableError
from tests.unit.cudnn_fake import compile_library

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="plans are made on Linux")

# In a process of its own: a library of this name must not enter the one that runs the tests.
ASK = r"""
import ctypes, json, sys
library = ctypes.CDLL(sys.argv[1])
said = {name: getattr(library, name)() for name in sys.argv[2].split()}
number, text, pointer = ctypes.c_int(7), ctypes.c_char_p(), ctypes.c_void_p(7)
said["cuInit"] = library.cuInit(0)
said["cuDriverGetVersion"] = [library.cuDriverGetVersion(ctypes.byref(number)), number.value]
said["no room"] = [library.cuDriverGetVersion(None), library.cuGetErrorName(3, None)]
for name in ("cuGetErrorName", "cuGetErrorString"):
    said[name] = []
    for status in (3, 100, 1):
        code = getattr(library, name)(status, ctypes.byref(text))
        said[name].append([code, text.value and text.value.decode()])
for name in ("cuGetProcAddress", "cuGetProcAddress_v2"):
    pointer = ctypes.c_void_p(7)
    said[name] = [getattr(library, name)(b"cuInit", ctypes.byref(pointer), 13000, ctypes.c_ulonglong(0), None)]
    said[name].append(pointer.value)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    compile_library("int one;", cache / "probe.so")  # skips where no compiler is
    return build_stub(cache, timeout=60)


def test_it_tells_the_truth(library: Path) -> None:
    refused = re.findall(r"^REFUSED\((\w+)\)$", SOURCE.read_text("utf-8"), re.MULTILINE)
    command = [sys.executable, "-c", ASK, str(library), " ".join(refused)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert said["cuInit"] == 100, "there is no device"
    assert said["cuDeviceGetCount"] == 3, "with 100 cuDNN loads kernels, and no fused plan is left"
    assert {name: said[name] for name in refused} == dict.fromkeys(refused, 3)
    assert said["cuDriverGetVersion"] == [0, 0]
    assert said["no room"] == [1, 1]
    assert said["cuGetErrorName"] == [[0, "CUDA_ERROR_NOT_INITIALIZED"], [0, "CUDA_ERROR_NO_DEVICE"], [1, None]]
    assert [code for code, _ in said["cuGetErrorString"]] == [0, 0, 1]
    assert said["cuGetProcAddress"] == said["cuGetProcAddress_v2"] == [3, None]
    assert len(refused) + 6 == 33


def test_it_is_built_once_and_kept_by_content(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = library.parents[1]
    monkeypatch.setattr(stub, "_compile", None)  # calling it would fail
    assert build_stub(cache, timeout=60) == library
    assert library.name == "libcuda.so.1"
    assert (library.parent.stat().st_mode & 0o077) == 0, "nobody else may put another there"
    assert [path.name for path in library.parent.iterdir()] == ["libcuda.so.1"]
    changed = tmp_path / "stub.c"
    changed.write_text(SOURCE.read_text("utf-8") + "\n", "utf-8")
    monkeypatch.setattr(stub, "SOURCE", changed)
    monkeypatch.setattr(stub, "_compile", lambda command, timeout: Path(command[-2]).write_bytes(b"built"))
    other = build_stub(cache, timeout=60)
    assert other.parent != library.parent
    assert other.read_bytes() == b"built"


def test_two_may_build_at_once(library: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: build_stub(tmp_path, timeout=60), range(4), timeout=100))
    assert len(set(found)) == 1
    assert [path.name for path in found[0].parent.iterdir()] == ["libcuda.so.1"]


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no-such-compiler", "no libcuda.so.1 and no compiler for a stand-in"),
        ("sh -c 'echo wrong >&2; exit 1'", "sh cannot build the stand-in for libcuda.so.1: wrong"),
        ("sh -c 'exit 1'", "no reason given"),
        ("sh -c 'exec sleep 30'", "sh took more than 0.2 s"),
        ("sh -c 'exit 0'", "cannot be kept"),
    ],
)
def test_without_a_compiler_the_error_says_what_to_install(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        build_stub(tmp_path, timeout=0.2 if "sleep" in compiler else 60)
    assert caught.value.hint
    assert not list(tmp_path.glob("*/*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BackendUnavailableError, match="cannot be kept in .*file.*another folder with cache="):
        build_stub(tmp_path / "file", timeout=60)


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "tazza"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "tazza"


def test_it_never_enters_this_process(library: Path) -> None:
    assert os.path.exists("/proc/self/maps")
    assert str(library) not in Path("/proc/self/maps").read_text("utf-8")

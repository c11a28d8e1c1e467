"""What the CUDA backend makes of source and of images, which needs no device: NVRTC compiles without one."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tazza.drivers.cuda import compiler
from tazza.drivers.cuda.compiler import compile_for_host, compile_source
from tazza.drivers.cuda.programs import code_of
from tazza.errors import ArgumentError, BackendError, CompileError, UnsupportedError

SOURCE = 'extern "C" __global__ void scale(float f, float *x) { x[threadIdx.x] *= f; }'


def nvrtc() -> Any:
    """NVRTC, or a skip with what to install."""
    try:
        module = importlib.import_module("cuda.bindings.nvrtc")
        module.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs NVRTC: pip install 'tazza[cuda13]' ({error})")
    return module


def test_nvrtc_makes_a_cubin_for_a_capability() -> None:
    nvrtc()
    image = compile_source(SOURCE, "9.0")
    assert image.startswith(b"\x7fELF")
    assert b"scale" in image
    assert code_of(image) is image


def test_nvrtc_makes_ptx_for_a_capability_that_it_does_not_know() -> None:
    known = nvrtc().nvrtcGetSupportedArchs()[1]
    image = compile_source(SOURCE, "99.9")
    assert f".target sm_{max(known)}".encode() in image
    assert code_of(image) is image
    with pytest.raises(UnsupportedError, match=r"not 1\.0"):
        compile_source(SOURCE, "1.0")


def test_nvrtcs_log_is_in_the_error() -> None:
    nvrtc()
    with pytest.raises(CompileError, match=r"kernels\.cu\(1\)") as caught:
        compile_source("undeclared name;", "9.0")
    assert "undeclared" in caught.value.log


def test_another_failure_of_nvrtc_is_a_backend_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = nvrtc()
    memory = real.nvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY
    monkeypatch.setattr(real, "nvrtcCreateProgram", lambda *_: (memory, None))
    with pytest.raises(BackendError) as caught:
        compile_source(SOURCE, "9.0")
    assert (caught.value.symbol, caught.value.call) == ("NVRTC_ERROR_OUT_OF_MEMORY", "nvrtcCreateProgram")


@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("no library libnvrtc.so.13")])
def test_a_missing_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def missing(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(compiler, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(UnsupportedError, match=r"tazza\[cuda13\]"):
        compile_source(SOURCE, "9.0")


def test_an_emulator_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda_emulator", None)
    with pytest.raises(UnsupportedError, match="tazza-cuda-emulator"):
        compile_for_host(SOURCE)


def test_images_and_source_are_told_apart() -> None:
    assert code_of(SOURCE) is SOURCE
    ptx = b"// by hand\n/* and with\ncomments */ \n.version 8.0\n.target sm_90\n"
    assert code_of(ptx) is ptx
    assert code_of(SimpleNamespace(code=ptx)) is ptx
    for wrong in (b"", SOURCE.encode(), 7, None, SimpleNamespace(code=7), SimpleNamespace(code=b"LTO")):
        with pytest.raises(ArgumentError, match=r"code: got a .*ObjectCode"):
            code_of(wrong)

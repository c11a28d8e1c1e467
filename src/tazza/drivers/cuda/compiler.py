"""From CUDA C++ to an image: NVRTC for hardware, the host's compiler for an emulated device."""

from __future__ import annotations

import importlib
from typing import Any

from tazza.drivers.cuda.libraries import check_compiler
from tazza.errors import BackendError, CompileError, UnsupportedError

__all__ = ["compile_for_host", "compile_source"]

_INSTALL = "pip install 'tazza[cuda13]' ('tazza[cuda12]'), which brings NVIDIA's compiler NVRTC"
_REFUSED = 6  # NVRTC_ERROR_COMPILATION


def compile_source(source: str, compute: str) -> bytes:
    """Make a cubin for a compute capability such as ``"9.0"``; PTX for the nearest below, where NVRTC does not know it.

    Needs no device.

    Raises:
        CompileError: with NVRTC's log.
        UnsupportedError: NVRTC is not installed, or does not fit with the driver and the libraries in use.
    """
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        known = _checked(nvrtc, "nvrtcGetSupportedArchs", nvrtc.nvrtcGetSupportedArchs())
        check_compiler()
    except (ImportError, RuntimeError) as error:  # RuntimeError is how the bindings say that there is no library
        raise UnsupportedError(f"source cannot be compiled here: {error}; {_INSTALL}") from error
    wanted = int(compute.replace(".", ""))
    if wanted in known:
        return _compiled(nvrtc, source, f"sm_{wanted}", "CUBIN")
    older = [one for one in known if one < wanted]
    if not older:
        raise UnsupportedError(f"the installed NVRTC knows compute capabilities {known}, not {compute} or an older one")
    return _compiled(nvrtc, source, f"compute_{max(older)}", "PTX")


def _compiled(nvrtc: Any, source: str, architecture: str, kind: str) -> bytes:
    program = _checked(
        nvrtc, "nvrtcCreateProgram", nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, None, None)
    )
    try:
        option = f"--gpu-architecture={architecture}".encode()
        [status] = nvrtc.nvrtcCompileProgram(program, 1, [option])
        if int(status) == _REFUSED:
            raise CompileError("code: NVRTC refuses the source", _log(nvrtc, program))
        _checked(nvrtc, "nvrtcCompileProgram", (status,))
        size = _checked(nvrtc, f"nvrtcGet{kind}Size", getattr(nvrtc, f"nvrtcGet{kind}Size")(program))
        image = b" " * int(size)
        _checked(nvrtc, f"nvrtcGet{kind}", getattr(nvrtc, f"nvrtcGet{kind}")(program, image))
        return image
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _log(nvrtc: Any, program: Any) -> str:
    text = b" " * int(_checked(nvrtc, "nvrtcGetProgramLogSize", nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc, "nvrtcGetProgramLog", nvrtc.nvrtcGetProgramLog(program, text))
    return text.rstrip(b"\0").decode(errors="replace").strip()


def _checked(nvrtc: Any, call: str, answer: Any) -> Any:
    status, *rest = answer
    if status:
        text = nvrtc.nvrtcGetErrorString(status)[1].decode()
        raise BackendError(text, backend="cuda", call=call, code=int(status), symbol=status.name)
    return rest[0] if rest else None


def compile_for_host(source: str) -> bytes:
    """Make what an emulated device runs, by the emulator's own function.

    Raises:
        CompileError: with the log of the host's compiler.
        UnsupportedError: the emulator's Python package is not installed, whoever brought its library.
    """
    try:
        emulator = importlib.import_module("cuda_emulator")
    except ImportError as error:
        raise UnsupportedError(
            "the driver is an emulator's, and its package, which compiles kernels for it, is missing: "
            "pip install 'tazza-cuda-emulator[header]'"
        ) from error
    try:
        return bytes(emulator.compile_kernels(source))
    except emulator.BuildError as error:
        raise CompileError("code: the emulator's compiler refuses the source", str(error)) from None

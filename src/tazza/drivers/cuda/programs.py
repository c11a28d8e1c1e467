"""Programs of kernels: what they are made from, loading them, finding kernels in them, launching those."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tazza.drivers.cuda.compiler import compile_for_host, compile_source
from tazza.drivers.cuda.primary import Primary
from tazza.errors import ArgumentError, BackendError, UnsupportedError
from tazza.spi import KernelInfo

__all__ = ["code_of", "find_kernel", "launch", "load_program"]

_PTX = re.compile(rb"(?:\s|//[^\n]*\n|/\*.*?\*/)*\.version\b", re.DOTALL)  # its first directive, after comments
_IMAGES = (b"\x7fELF", b"\x50\xed\x55\xba")  # a cubin, and several in a fat binary
_EXPECTED = "CUDA C++ or PTX as text, a cubin as bytes, or a cuda.core.ObjectCode"
_MOST_THREADS, _MOST_SHARED = 0, 8  # of CUfunction_attribute
_PLENTY = 48 * 1024  # bytes of shared memory from which on a kernel has to say that it wants them
_INVALID_VALUE, _NOT_FOUND, _MOST_PARAMETERS = 1, 500, 4096
_PTX_REFUSED = 218, 222  # INVALID_PTX, UNSUPPORTED_PTX_VERSION


def code_of(given: object) -> str | bytes:
    """The source or the image in what the user has.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(given, str):
        return given
    code = given if isinstance(given, bytes) else getattr(given, "code", None)
    if isinstance(code, (str, os.PathLike)):  # an ObjectCode of a file
        try:
            code = Path(code).read_bytes()
        except OSError as error:
            raise ArgumentError(f"code: its file cannot be read: {error}") from error
    if not isinstance(code, bytes) or not (code.startswith(_IMAGES) or _PTX.match(code)):
        # Its type alone: an ObjectCode that is printed is loaded.
        raise ArgumentError(f"code: got a {type(given).__name__} that is none of what is expected: {_EXPECTED}")
    return code


def load_program(primary: Primary, code: str | bytes) -> Any:
    """Compile what is source, and load it; returns a CUlibrary.

    Raises:
        CompileError: the compiler refuses the source.
        BackendError: the driver refuses the image.
    """
    image = code.encode() if isinstance(code, str) else code
    is_ptx = _PTX.match(image) is not None
    if isinstance(code, str) and not is_ptx:
        emulated = primary.info.emulated
        image = compile_for_host(code) if emulated else compile_source(code, str(primary.info.extra["compute"]))
        is_ptx = _PTX.match(image) is not None
    return primary.call("cuLibraryLoadData", image + b"\0" if is_ptx else image, [], [], 0, [], [], 0)


def find_kernel(primary: Primary, program: Any, name: str) -> KernelInfo:
    """Look a kernel up, with what the driver tells of its parameters.

    Raises:
        ArgumentError: there is none of that name.
        UnsupportedError: the driver is older than CUDA 12.4 and does not tell.
    """
    try:
        kernel = primary.call("cuLibraryGetKernel", program, name.encode())
    except BackendError as error:
        if error.code != _NOT_FOUND:
            raise
        known = ", ".join(_names(primary, program)) or "no kernels"
        expected = f'one of the code\'s kernels ({known}; C++ changes the names of those that are not extern "C")'
        raise ArgumentError.of("name", name, expected) from None
    attribute = primary.api.CUfunction_attribute(_MOST_THREADS)
    most = int(primary.call("cuKernelGetAttribute", attribute, kernel, primary.native))
    function = primary.api.CUfunction(int(kernel))  # a CUkernel is taken where a CUfunction is
    return KernelInfo(function, _parameters(primary, kernel), most)


def _names(primary: Primary, program: Any) -> list[str]:
    count = primary.call("cuLibraryGetKernelCount", program)
    kernels = primary.call("cuLibraryEnumerateKernels", count, program) if count else []
    return sorted(primary.call("cuKernelGetName", kernel).decode() for kernel in kernels)


def _parameters(primary: Primary, kernel: Any) -> tuple[int, ...]:
    sizes: list[int] = []
    while len(sizes) < _MOST_PARAMETERS:
        try:
            _, size = primary.call("cuKernelGetParamInfo", kernel, len(sizes))
        except BackendError as error:
            if error.code == _INVALID_VALUE:  # how the driver says that there are no more
                break
            if error.code is None:  # it has no such function
                raise UnsupportedError(f"launching kernels needs a driver of CUDA 12.4 or newer: {error}") from error
            raise
        sizes.append(int(size))
    return tuple(sizes)


def launch(primary: Primary, queue: Any, function: Any, shape: tuple[int, ...], arguments: tuple[bytes, ...]) -> None:
    """Put one launch into a stream; the driver copies the arguments before it returns."""
    shared = shape[-1]
    if shared > _PLENTY:
        attribute = primary.api.CUfunction_attribute(_MOST_SHARED)
        kernel = primary.api.CUkernel(int(function))
        primary.call("cuKernelSetAttribute", attribute, shared, kernel, primary.native)
    primary.check("cuLaunchKernel")
    failed = primary.calls.launch(function, shape, queue, arguments)
    if failed:
        primary.refuse("cuLaunchKernel", failed)

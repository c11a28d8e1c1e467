"""Kernels in CUDA C++, compiled by the host's compiler into an image that the emulator loads.

The image is what ``cuLibraryLoadData`` and ``cuModuleLoadData`` accept, and so ``cuda.core.ObjectCode.from_cubin``.
It is a shared object of the host (c/kernel_abi.h says what is in it), made from the source and kernel.hpp, which gives
CUDA's words a meaning on the CPU.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from cuda_emulator.build import SOURCES, cached
from cuda_emulator.compiler import content_key, find_cxx_compiler
from cuda_emulator.errors import BuildError

_SHIM = Path(__file__).with_name("kernel.hpp")
_FLAGS = (
    *("-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-pthread", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"),
    # A kernel may be called as a function of the C library is: inside the image the name means the kernel.
    "-Wl,-Bsymbolic",
)

_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|R"\((?:.*?)\)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
_KERNEL = re.compile(r"__global__\s+(?:(?:__launch_bounds__\s*\([^)]*\)|static|inline|void)\s+)*(\w+)\s*\(")
_GLOBAL = re.compile(r"(?:__(?:device|constant|managed)__\s+)+([^;{}()=]+?)\s*[;={]")
_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?([\w:\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;"
)


def compile_kernels(source: str, *, options: Sequence[str] = ()) -> bytes:
    """The image of every ``extern "C" __global__ void`` function in ``source``.

    A parameter that is a pointer is taken for a pointer to device memory; one inside a structure is not followed.
    Blocks, and the threads of a block, run one after the other, from barrier to barrier where the source has
    ``__syncthreads``. Images are cached by what they are made from.

    Args:
        source: CUDA C++; nothing has to be included.
        options: for the compiler, such as ``-DN=4`` or ``-Ifolder``.

    Raises:
        BuildError: there is no C++ compiler or it refuses, or there is no kernel that can be found by its name.
    """
    kernels, variables = _names(source)
    barriers = "true" if "__syncthreads" in _without_noise(source) else "false"
    dynamic = _DYNAMIC.sub(r"\1 *\2 = static_cast<\1 *>(::cuda_emulator::block().shared);", source)
    text = "\n".join(
        [
            '#include "kernel.hpp"',
            '#line 1 "kernels.cu"',
            dynamic,
            *(f"CUDA_EMULATOR_KERNEL({name}, {barriers})" for name in kernels),
            *(f"CUDA_EMULATOR_GLOBAL({name})" for name in variables),
            "",
        ]
    )
    compiler = find_cxx_compiler()
    how = (*_FLAGS, *options, "-I", str(_SHIM.parent), "-I", str(SOURCES), "-x", "c++")
    # What the source includes is part of what the image is made from, and so is kernel.hpp.
    expanded = compiler.run([*how, "-E", "-P", "-"], text)
    key = content_key(compiler.version, *compiler.command, *_FLAGS, *options, expanded)

    def build(folder: Path) -> None:
        compiler.run([*how, "-o", str(folder / "kernels.so"), "-"], text)

    return (cached(f"kernels-{key}", build) / "kernels.so").read_bytes()


def _names(source: str) -> tuple[list[str], list[str]]:
    """The kernels and the global variables of a source."""
    text = _without_noise(source)
    kernels: dict[str, None] = {}
    for found in _KERNEL.finditer(text):
        if not _is_extern_c(text[: found.start()]):
            raise BuildError(f'the kernel {found[1]} is not extern "C", so a driver would not find it by this name')
        kernels[found[1]] = None
    if not kernels:
        raise BuildError('the source has no kernel: extern "C" __global__ void name(...)')
    variables = [re.findall(r"\w+", found[1].partition("[")[0])[-1] for found in _GLOBAL.finditer(text)]
    return list(kernels), variables


def _without_noise(source: str) -> str:
    """The source with comments and texts blanked; ``"C"`` stays, because linkage is looked at."""
    return _NOISE.sub(lambda found: found[0] if found[0] == '"C"' else " ", source)


def _is_extern_c(before: str) -> bool:
    if re.search(r'extern\s+"C"\s*$', before):
        return True
    opened = before.rfind('extern "C" {')
    return opened >= 0 and before[opened:].count("{") > before[opened:].count("}")

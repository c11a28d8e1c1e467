"""The emulated libcudnn, libcublas and libcurand: built when somebody asks for them, beside each other in one folder.

They are clients of the emulated driver: kernels for it (libraries/kernels.cu), and C that launches them. Nothing loads
them, and no search path names them, unless the setting `libraries` is on.
"""

import ctypes
import os
from pathlib import Path

from cuda_emulator.build import SOURCES, cached, library
from cuda_emulator.compiler import content_key, find_c_compiler
from cuda_emulator.errors import StartError
from cuda_emulator.header import find_header
from cuda_emulator.kernels import compile_kernels

FOLDER = Path(__file__).parent / "libraries"
# The order is that of loading: a path finder looks for cublasLt before it hands out the others.
NAMES = {
    "libcublasLt.so.13": ("lt.c",),
    "libcublas.so.13": ("cublas.c", "common.c"),
    "libcurand.so.10": ("curand.c", "common.c"),
    "libcudnn.so.9": ("cudnn.c", "convolution.c", "pointwise.c", "common.c"),
}

_FLAGS = ("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-pthread", "-D_GNU_SOURCE", "-fvisibility=hidden")
_LINKER = ("-Wl,-z,defs", "-Wl,-z,now", f"-Wl,--version-script={FOLDER / 'exports.map'}")


def libraries() -> Path:
    """The folder with the emulated libcudnn.so.9, libcublas.so.13 and libcurand.so.10, built if need be.

    They work on the emulated driver only: on a real one they cannot be loaded, as symbols are missing there.

    Raises:
        BuildError: no compiler, no header, or the compiler refuses; the message says which.
    """
    driver, compiler, include = library(), find_c_compiler(), find_header()
    image = compile_kernels((FOLDER / "kernels.cu").read_text(), options=("-I", str(FOLDER)))
    sources = sorted(path for path in FOLDER.iterdir() if path.suffix in (".c", ".h", ".map"))
    key = content_key(
        compiler.version,
        *compiler.command,
        *_FLAGS,
        str(driver),
        *(part for path in sources for part in (path.name, path.read_bytes())),
        image,
    )

    def build(folder: Path) -> None:
        (folder / "kernels.so").write_bytes(image)
        for name, files in NAMES.items():
            compiler.run(
                [
                    *(*_FLAGS, *_LINKER, f"-Wl,-soname,{name}"),
                    *("-I", str(FOLDER), "-I", str(SOURCES), "-isystem", str(include)),
                    *("-o", str(folder / name)),
                    *(*(str(FOLDER / file) for file in files), str(driver), "-ldl"),
                ]
            )

    return cached(f"libraries-{key}", build)


def load_libraries(folder: Path) -> None:
    """Loads them into this process, so that whoever asks for one by its name gets it.

    Raises:
        StartError: another library of one of these names is loaded already.
    """
    for name in NAMES:
        try:
            loaded = ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
        except OSError:  # none is
            ctypes.CDLL(str(folder / name))
            continue
        if not hasattr(loaded, "emulated_library"):
            raise StartError(f"another {name} is loaded already; start the emulator before anything that uses it")

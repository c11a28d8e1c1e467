"""oneDNN's C interface through ctypes: finding the library, its functions, and its numbers.

Only what makes plans goes through ctypes; executing them is `tazza.hot.primitives`.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Final, final

from tazza.errors import BackendError, BackendUnavailableError

__all__ = ["DTYPES", "Dnnl", "load"]

PACKAGE: Final = "onednn-cpu-gomp"
HINT: Final = "pip install 'tazza[dnn]'"
MAJOR: Final = 3
_SONAME: Final = "libdnnl.so.3"

DTYPES: Final = {"float16": 1, "bfloat16": 2, "float32": 3}
"""oneDNN's numbers of the dtypes that it computes with here."""

ANY: Final = 1  # format tag: the library chooses
CPU: Final = 1
FORWARD_TRAINING: Final = 64
FORWARD_INFERENCE: Final = 96
BACKWARD: Final = 128
DIRECT: Final = 1
TANH: Final = 33
LINEAR: Final = 38
LOGISTIC: Final = 41
SWISH: Final = 44
CLIP: Final = 46
GELU: Final = 49
HARD_SWISH: Final = 52
TANH_FROM_RESULT: Final = 0x101
LOGISTIC_FROM_RESULT: Final = 0x104
MAX_POOLING: Final = 0x1FF
AVERAGE_WITH_PADDING: Final = 0x2FF
AVERAGE_WITHOUT_PADDING: Final = 0x3FF
SUM: Final = 0x2FFF4
SOFTMAX: Final = 0x30000
LOG_SOFTMAX: Final = 0x30001
USER_SCRATCHPAD: Final = 1

SRC, DST, WEIGHTS, BIAS, WORKSPACE, SCRATCHPAD = 1, 17, 33, 41, 64, 80
MEAN, VARIANCE, SCALE, SHIFT, DIFF_SCALE, DIFF_SHIFT = 49, 50, 51, 52, 255, 256
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS = 129, 145, 161, 169

QUERY_NAME: Final = 8
QUERY_MD: Final = {
    SRC: 129,
    DIFF_SRC: 130,
    WEIGHTS: 131,
    DIFF_WEIGHTS: 132,
    DST: 133,
    DIFF_DST: 134,
    WORKSPACE: 135,
    SCRATCHPAD: 136,
}
QUERY_STRIDES, QUERY_NDIMS, QUERY_DIMS, QUERY_PADDED_DIMS = 14, 256, 257, 260
QUERY_BLOCK_COUNT, QUERY_BLOCKS, QUERY_BLOCK_AXES = 263, 264, 265

_UNIMPLEMENTED = (2, 3)  # what it lacks is "invalid arguments" or "unimplemented", depending on who notices
_STATUS: Final = {
    1: "dnnl_out_of_memory",
    2: "dnnl_invalid_arguments",
    3: "dnnl_unimplemented",
    4: "dnnl_last_impl_reached",
    5: "dnnl_runtime_error",
}
_Dims = c_int64 * 12


class _Version(ctypes.Structure):
    _fields_ = [("major", c_int), ("minor", c_int), ("patch", c_int)]


def dims(values: Any) -> Any:
    """Extents, strides or windows as oneDNN takes them."""
    return _Dims(*values)


def load() -> Dnnl:
    """Load the wheel's library.

    Raises:
        BackendUnavailableError: it is not there, or not for this machine.
    """
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise BackendUnavailableError("onednn", f"its wheel is for Linux on x86-64, not {platform.machine()}")
    path = _find()
    try:
        library = ctypes.CDLL(str(path))
        threads = ctypes.CDLL("libgomp.so.1")
    except OSError as error:
        raise BackendUnavailableError("onednn", f"{path.name} cannot be loaded: {error}", HINT) from error
    found = Dnnl(library, threads)
    if found.version_number[0] != MAJOR:
        raise BackendUnavailableError("onednn", f"found version {found.version}, expected {MAJOR}.x", HINT)
    return found


def _find() -> Path:
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BackendUnavailableError("onednn", f"{PACKAGE} is not installed", HINT) from None
    for file in distribution.files or ():
        if file.name == _SONAME:
            return Path(str(distribution.locate_file(file))).resolve()
    raise BackendUnavailableError("onednn", f"{PACKAGE} {distribution.version} has no {_SONAME}", HINT)


@final
class Dnnl:
    """The library's functions. Everything that it makes is a number, the address of an object of its own."""

    def __init__(self, library: Any, threads: Any) -> None:
        self._library, self._threads = library, threads
        library.dnnl_version.restype = POINTER(_Version)
        library.dnnl_memory_desc_get_size.restype = c_size_t
        library.dnnl_primitive_desc_query_md.restype = c_void_p
        version = library.dnnl_version().contents
        self.version_number = version.major, version.minor, version.patch
        self.version = ".".join(map(str, self.version_number))
        self.functions: tuple[int, int, int, int] = tuple(  # type: ignore[assignment]
            ctypes.cast(function, c_void_p).value
            for function in (
                library.dnnl_primitive_execute,
                library.dnnl_memory_set_data_handle,
                threads.omp_get_max_threads,
                threads.omp_set_num_threads,
            )
        )

    def get_threads(self) -> int:
        """How many threads OpenMP uses for what the calling thread does."""
        return int(self._threads.omp_get_max_threads())

    def set_threads(self, count: int) -> None:
        """Set it, for the calling thread alone."""
        self._threads.omp_set_num_threads(count)

    def make(self, function: str, *arguments: Any) -> int:
        """Call what makes an object, and return that.

        Raises:
            BackendError: it failed.
        """
        made = c_void_p()
        self._check(function, self._call(function, byref(made), *arguments))
        return made.value or 0

    def make_if_there(self, function: str, *arguments: Any) -> int | None:
        """As `make`; None where the library has no such thing."""
        made = c_void_p()
        status = self._call(function, byref(made), *arguments)
        if status in _UNIMPLEMENTED:
            return None
        self._check(function, status)
        return made.value

    def do(self, function: str, *arguments: Any) -> None:
        """Call what makes nothing.

        Raises:
            BackendError: it failed.
        """
        self._check(function, self._call(function, *arguments))

    def next_implementation(self, descriptor: int) -> bool:
        """Turn a primitive's descriptor to the library's next choice; False where there is none."""
        return bool(self._call("dnnl_primitive_desc_next_impl", descriptor) == 0)

    def name(self, descriptor: int) -> str:
        """The implementation that a primitive's descriptor stands for."""
        text = c_char_p()
        self.do("dnnl_primitive_desc_query", descriptor, QUERY_NAME, 0, byref(text))
        return (text.value or b"").decode()

    def layout(self, descriptor: int, what: int, number: int = 0) -> int:
        """The layout that a primitive's descriptor has for an argument; belongs to the descriptor."""
        found = self._library.dnnl_primitive_desc_query_md(c_void_p(descriptor), QUERY_MD[what], number)
        return int(found or 0)

    def nbytes(self, layout: int) -> int:
        """Bytes of memory in a layout."""
        return int(self._library.dnnl_memory_desc_get_size(c_void_p(layout)))

    def equal(self, one: int, other: int) -> bool:
        """Whether two layouts are the same."""
        return bool(self._library.dnnl_memory_desc_equal(c_void_p(one), c_void_p(other)))

    def strided(self, dtype: str, shape: Any, strides: Any) -> int:
        """Make a plain layout, strides in elements."""
        return self.make("dnnl_memory_desc_create_with_strides", len(shape), dims(shape), DTYPES[dtype], dims(strides))

    def free_choice(self, dtype: str, shape: Any) -> int:
        """Make the layout that says: as the primitive likes it."""
        return self.make("dnnl_memory_desc_create_with_tag", len(shape), dims(shape), DTYPES[dtype], ANY)

    def shape(self, layout: int) -> tuple[int, ...]:
        """The extents of a layout."""
        count = c_int()
        self._query(layout, QUERY_NDIMS, count)
        return self._numbers(layout, QUERY_DIMS, count.value)

    def describe(self, layout: int) -> tuple[Any, ...]:
        """Say what a layout is as a value to compare by: extents, strides and inner blocks."""
        count, blocks = c_int(), c_int()
        self._query(layout, QUERY_NDIMS, count)
        self._query(layout, QUERY_BLOCK_COUNT, blocks)
        axes = [self._numbers(layout, what, count.value) for what in (QUERY_DIMS, QUERY_PADDED_DIMS, QUERY_STRIDES)]
        inner = [self._numbers(layout, what, blocks.value) for what in (QUERY_BLOCKS, QUERY_BLOCK_AXES)]
        return (*axes, *inner)

    def _query(self, layout: int, what: int, into: Any) -> None:
        self.do("dnnl_memory_desc_query", layout, what, byref(into))

    def _numbers(self, layout: int, what: int, count: int) -> tuple[int, ...]:
        found = POINTER(c_int64)()
        self._query(layout, what, found)
        return tuple(found[:count])

    def _call(self, function: str, *arguments: Any) -> int:
        return int(getattr(self._library, function)(*[_argument(one) for one in arguments]))

    def _check(self, function: str, status: int) -> None:
        if status:
            raise BackendError(
                "the library refused", backend="onednn", call=function, code=status, symbol=_STATUS.get(status, "")
            )


def _argument(value: Any) -> Any:
    """A number as ctypes passes it whole.

    Addresses are plain integers here, of which ctypes would pass 32 bits: also of small ones, as a Python that is not
    position independent has them (Debian's), where a call's seventh argument and those after it then carry what was on
    the stack before. On x86-64 a function that takes fewer bits looks at the lower ones.
    """
    if type(value) is int or value is None:
        return c_void_p(value)
    return c_float(value) if type(value) is float else value

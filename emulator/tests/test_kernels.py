"""Kernels compiled by the host: what CUDA's words mean, and what is refused. Run through the ABI of the image."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_emulator import BuildError, compile_kernels

Sizes = tuple[int, int, int]
Kernel = Callable[..., None]


class Shape(ctypes.Structure):
    """EmulatorShape of c/kernel_abi.h."""

    _fields_ = (("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_size_t))


class Image:
    """A loaded image."""

    def __init__(self, source: str, folder: Path, **options: object) -> None:
        path = folder / "image.so"
        path.write_bytes(compile_kernels(source, **options))  # type: ignore[arg-type]
        self.symbols = ctypes.CDLL(str(path))

    def sizes(self, kernel: str) -> list[int]:
        """The table of a kernel's parameters."""
        n = ctypes.c_int.in_dll(self.symbols, f"{kernel}__params").value
        return list((ctypes.c_int * (n + 1)).in_dll(self.symbols, f"{kernel}__params"))[1:]

    def launch(self, kernel: str, grid: Sizes, block: Sizes, *values: "ctypes._CData", shared: int = 0) -> None:
        """Runs a kernel; an array stands for the pointer to it."""
        passed = [ctypes.c_void_p(ctypes.addressof(v)) if isinstance(v, ctypes.Array) else v for v in values]
        pointers = (ctypes.c_void_p * (len(passed) or 1))(*(ctypes.addressof(value) for value in passed))
        getattr(self.symbols, f"{kernel}__launch")(pointers, ctypes.byref(Shape(grid, block, shared)))


def test_every_thread_knows_where_it_is(tmp_path: Path) -> None:
    image = Image(
        """
        extern "C" __global__ void where(int *to) {
            unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
            unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
            atomicAdd(to + block * (blockDim.x * blockDim.y * blockDim.z) + thread, 1 + (int)thread);
        }
        """,
        tmp_path,
    )
    counts = (ctypes.c_int * (24 * 30))()
    image.launch("where", (2, 3, 4), (5, 3, 2), counts)
    assert list(counts) == list(range(1, 31)) * 24


def test_parameters_are_described_by_size_and_pointers_by_a_negative_one(tmp_path: Path) -> None:
    image = Image(
        """
        struct Pair { double x; char y; };
        extern "C" __global__
        void many(const float *__restrict__ p, const char c, short s, double d, Pair pair, void *q) {}
        extern "C" __global__ void none() {}
        """,
        tmp_path,
    )
    assert image.sizes("many") == [-8, 1, 2, 8, 16, -8]
    assert image.sizes("none") == []


def test_barriers_hold_the_threads_of_a_block_together(tmp_path: Path) -> None:
    image = Image(
        """
        extern "C" __global__ void rotate(int *x, int turns) {
            __shared__ int now[64];
            extern __shared__ __align__(16) int next[];
            now[threadIdx.x] = threadIdx.x + 100 * blockIdx.x;
            for (int turn = 0; turn < turns; turn++) {
                __syncthreads();
                next[(threadIdx.x + 1) % blockDim.x] = now[threadIdx.x];
                __syncthreads();
                now[threadIdx.x] = next[threadIdx.x];
            }
            x[blockIdx.x * blockDim.x + threadIdx.x] = now[threadIdx.x];
        }
        """,
        tmp_path,
    )
    x = (ctypes.c_int * 128)()
    image.launch("rotate", (2, 1, 1), (64, 1, 1), x, ctypes.c_int(5), shared=4 * 64)
    assert list(x) == [(i - 5) % 64 + 100 * block for block in range(2) for i in range(64)]


def test_threads_that_returned_are_not_waited_for(tmp_path: Path) -> None:
    image = Image(
        """
        extern "C" __global__ void some(int *x) {
            if (threadIdx.x >= 3) return;
            x[threadIdx.x] = 1;
            __syncthreads();
            x[3 + threadIdx.x] = x[(threadIdx.x + 1) % 3];
        }
        """,
        tmp_path,
    )
    x = (ctypes.c_int * 8)()
    image.launch("some", (1, 1, 1), (8, 1, 1), x)
    assert list(x) == [1] * 6 + [0] * 2


def test_atomics_return_what_was_there(tmp_path: Path) -> None:
    image = Image(
        """
        extern "C" __global__ void atomics(unsigned *x, float *f) {
            x[0] = 6;
            x[1] = atomicAdd(x, 4); x[2] = atomicSub(x, 1); x[3] = atomicMin(x, 3); x[4] = atomicMax(x, 12);
            x[5] = atomicAnd(x, 10); x[6] = atomicOr(x, 1); x[7] = atomicXor(x, 3); x[8] = atomicCAS(x, 10, 7);
            x[9] = atomicExch(x, 1);
            f[1] = atomicAdd(f, 2);
        }
        """,
        tmp_path,
    )
    x, f = (ctypes.c_uint * 10)(), (ctypes.c_float * 2)(1.5, 0)
    image.launch("atomics", (1, 1, 1), (1, 1, 1), x, f)
    assert list(x) == [1, 6, 10, 9, 3, 12, 8, 9, 10, 7]
    assert list(f) == [3.5, 1.5]


def test_global_variables_are_named_with_their_sizes(tmp_path: Path) -> None:
    image = Image(
        """
        // __device__ int not_this;
        __device__ int counter = 5;
        __constant__ float table[3][4];
        __device__ const char *text = "__device__ int nor_this;";
        __device__ int twice(int x) { return 2 * x; }
        extern "C" __global__ void k() { counter = twice(counter); }
        """,
        tmp_path,
    )
    sizes = {
        name: ctypes.c_size_t.in_dll(image.symbols, f"{name}__global").value for name in ("counter", "table", "text")
    }
    assert sizes == {"counter": 4, "table": 48, "text": 8}
    for name in ("not_this", "nor_this", "twice"):
        with pytest.raises(ValueError, match=name):
            ctypes.c_size_t.in_dll(image.symbols, f"{name}__global")
    image.launch("k", (1, 1, 1), (1, 1, 1))
    assert ctypes.c_int.in_dll(image.symbols, "counter").value == 10


def test_a_kernel_may_have_the_name_of_a_system_call(tmp_path: Path) -> None:
    image = Image('extern "C" __global__ void write(int *x) { x[0] = 3; }', tmp_path)
    x = (ctypes.c_int * 1)()
    image.launch("write", (1, 1, 1), (1, 1, 1), x)
    assert x[0] == 3


def test_options_reach_the_compiler(tmp_path: Path) -> None:
    source = 'extern "C" { __global__ void __launch_bounds__(32) k(int *x) { x[0] = N; } }'
    image = Image(source, tmp_path, options=("-DN=9",))
    x = (ctypes.c_int * 1)()
    image.launch("k", (1, 1, 1), (1, 1, 1), x)
    assert x[0] == 9


def test_an_image_is_made_again_when_what_it_includes_has_changed(tmp_path: Path) -> None:
    source = '#include "value.h"\nextern "C" __global__ void k(int *x) { x[0] = VALUE; }'
    seen = []
    for value in (1, 2):
        (tmp_path / "value.h").write_text(f"#define VALUE {value}")
        folder = tmp_path / str(value)
        folder.mkdir()
        x = (ctypes.c_int * 1)()
        Image(source, folder, options=(f"-I{tmp_path}",)).launch("k", (1, 1, 1), (1, 1, 1), x)
        seen.append(x[0])
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("int x;", "has no kernel"),
        ("__global__ void k() {}", 'the kernel k is not extern "C"'),
        ('extern "C" { int x; } __global__ void k() {}', 'the kernel k is not extern "C"'),
        ('extern "C" __global__ void k() { int x = ; }', r"kernels\.cu:1"),
        ('extern "C" __global__ void k(int *x) { *x = __shfl_sync(~0u, *x, 0); }', "__shfl_sync"),
    ],
)
def test_what_cannot_be_compiled_is_said(source: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        compile_kernels(source)

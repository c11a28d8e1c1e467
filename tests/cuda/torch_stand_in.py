"""A stand-in for PyTorch's CUDA memory, which has no CUDA here: it calls the door as PyTorch does.

What it does is what torch/csrc/cuda/CUDAPluggableAllocator.cpp does: the functions are called from C++ through
``std::function``, an exception is caught there as ``std::exception`` and becomes a RuntimeError, an address that came
back is noted with its size, device and stream, and these are what the memory is freed with.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.cuda.conftest import ROOT

SOURCE = ROOT / "src/tazza/adapters/torch_memory.cpp"

CALLER = r"""
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <thread>
#include <utility>
#include <vector>
#include <unistd.h>

using Allocate = void *(std::size_t, int, void *);
using Free = void(void *, std::size_t, int, void *);
using Record = void(void *, void *);
using BeginPool = void(int, std::pair<unsigned long long, unsigned long long>, std::function<bool(void *)>);
using Fraction = void(double, int);

namespace {
// 0, or 1 and the text of what was thrown.
int guarded(char *text, std::size_t room, const std::function<void()> &call) {
    try {
        call();
    } catch (const std::exception &error) {
        std::snprintf(text, room, "%s", error.what());
        return 1;
    }
    return 0;
}

struct AtTheEnd {
    Allocate *allocate = nullptr;
    Free *free = nullptr;
    void *kept = nullptr;
    ~AtTheEnd() {
        if (allocate == nullptr) return;
        char text[200] = "allocated";
        std::function<Free> give = free;
        give(kept, 1000, 0, nullptr);
        guarded(text, sizeof text - 2, [&] { allocate(1000, 0, nullptr); });
        std::strcat(text, "\n");
        if (write(1, text, std::strlen(text)) < 0) return;
    }
} at_the_end;
}  // namespace

extern "C" {
int call_allocate(Allocate *function, std::size_t size, int device, void *stream, void **address, char *text,
                  std::size_t room) {
    std::function<Allocate> allocate = function;
    return guarded(text, room, [&] { *address = allocate(size, device, stream); });
}

// In a thread that Python knows nothing of.
int call_allocate_elsewhere(Allocate *function, std::size_t size, int device, void *stream, void **address, char *text,
                            std::size_t room) {
    int answer = 0;
    std::thread([&] { answer = call_allocate(function, size, device, stream, address, text, room); }).join();
    return answer;
}

void call_free(Free *function, void *address, std::size_t size, int device, void *stream) {
    std::function<Free> give = function;
    give(address, size, device, stream);
}

// Whoever calls this holds the interpreter's lock all the time.
void call_free_elsewhere(Free *function, void *address, std::size_t size, int device, void *stream) {
    std::thread([&] { call_free(function, address, size, device, stream); }).join();
}

int call_record(Record *function, void *address, void *stream, char *text, std::size_t room) {
    std::function<Record> record = function;
    return guarded(text, room, [&] { record(address, stream); });
}

int call_begin_pool(BeginPool *function, char *text, std::size_t room) {
    std::function<BeginPool> begin = function;
    return guarded(text, room, [&] { begin(0, {0, 1}, [](void *) { return true; }); });
}

int call_fraction(Fraction *function, char *text, std::size_t room) {
    std::function<Fraction> fraction = function;
    return guarded(text, room, [&] { fraction(0.5, 0); });
}

// Threads of C++ that allocate, record and free; returns how many refusals there were.
int call_from_many(Allocate *allocate, Record *record, Free *give, void **streams, int threads, int rounds) {
    std::vector<std::thread> running;
    std::vector<int> refused(threads);
    for (int thread = 0; thread < threads; ++thread)
        running.emplace_back([=, &refused] {
            char text[100];
            for (int round = 0; round < rounds; ++round) {
                const std::size_t size = 100 + 997 * (round % 7);
                const int device = (thread + round) % 2;
                void *address = nullptr, *stream = streams[2 * device], *other = streams[2 * device + 1];
                if (guarded(text, sizeof text, [&] { address = allocate(size, device, stream); })) ++refused[thread];
                else if (round % 3 == 0) record(address, other);
                if (address != nullptr) give(address, size, device, stream);
            }
        });
    for (auto &thread : running) thread.join();
    int all = 0;
    for (int one : refused) all += one;
    return all;
}

void leave_for_the_end(Allocate *allocate, Free *give, void *address) {
    at_the_end.allocate = allocate;
    at_the_end.free = give;
    at_the_end.kept = address;
}
}
"""


def build(folder: Path) -> tuple[Path, Path]:
    """The door and what calls it, compiled; skips where no compiler for C++ is there."""
    from cuda_emulator.compiler import find_cxx_compiler
    from cuda_emulator.errors import BuildError

    try:
        compiler = find_cxx_compiler()
    except BuildError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    made = folder / "door.so", folder / "caller.so"
    options = ["-std=c++14", "-Wall", "-Wextra", "-Werror", "-pthread", "-shared", "-fPIC", "-O1"]
    for path, text in zip(made, (SOURCE.read_text("utf-8"), CALLER), strict=True):
        compiler.run([*options, "-x", "c++", "-", "-o", str(path)], text)
    return made


class _Hooks:
    """`torch._C._CUDAPluggableAllocator`: addresses of functions, as registerCudaPluggableAllocator binds them."""

    def __init__(self, allocate: int, free: int) -> None:
        self.functions = {"allocate": allocate, "free": free}

    def set_record_stream_fn(self, func_ptr: int) -> None:
        self.functions["record"] = func_ptr

    def set_begin_allocate_to_pool(self, func_ptr: int) -> None:
        self.functions["begin_pool"] = func_ptr

    def set_memory_fraction_fn(self, func_ptr: int) -> None:
        self.functions["fraction"] = func_ptr


class CUDAPluggableAllocator:
    """`torch.cuda.memory.CUDAPluggableAllocator`."""

    def __init__(self, path_to_so_file: str, alloc_fn_name: str, free_fn_name: str) -> None:
        library = ctypes.CDLL(path_to_so_file)
        allocate, free = (
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in (alloc_fn_name, free_fn_name)
        )
        assert allocate
        assert free
        self._allocator = _Hooks(allocate, free)

    def allocator(self) -> _Hooks:
        return self._allocator


class Torch:
    """The parts of PyTorch that `own_process` calls, and its memory.

    Attributes:
        used: whether CUDA has been used, after which the allocator cannot be changed.
    """

    def __init__(self, caller: Path) -> None:
        self._held: Any = ctypes.PyDLL(str(caller))
        self._let_go: Any = ctypes.CDLL(str(caller))
        self.used = False
        self.hooks: _Hooks | None = None
        self.metadata: dict[int, tuple[int, int, int]] = {}

    def module(self, cuda: str | None = "13.0") -> Any:
        """A module to stand for ``torch``."""
        torch = ModuleType("torch")
        memory = SimpleNamespace(
            CUDAPluggableAllocator=CUDAPluggableAllocator, change_current_allocator=self.change_current_allocator
        )
        vars(torch).update(
            __version__="2.13.0", version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(memory=memory)
        )
        return torch

    def change_current_allocator(self, allocator: CUDAPluggableAllocator) -> None:
        if self.used or self.hooks is not None:
            raise RuntimeError("Can't swap an already initialized allocator")
        self.hooks = allocator.allocator()

    def function(self, name: str) -> ctypes.c_void_p:
        """A function that PyTorch was given."""
        assert self.hooks is not None
        return ctypes.c_void_p(self.hooks.functions[name])

    def allocate(self, size: int, device: int = 0, stream: Any = 0, *, elsewhere: bool = False) -> int:
        """What a tensor does; ``elsewhere`` in a thread such as autograd's."""
        address = ctypes.c_void_p(12345)
        call = self._let_go.call_allocate_elsewhere if elsewhere else self._held.call_allocate
        given = (ctypes.c_size_t(size), device, ctypes.c_void_p(int(stream)), ctypes.byref(address))
        self._checked(call, self.function("allocate"), *given)
        self.metadata.setdefault(address.value or 0, (size, device, int(stream)))
        return address.value or 0

    def free(self, address: int, *, elsewhere: bool = False) -> None:
        """What a tensor's end does; ``elsewhere`` while this thread keeps the interpreter to itself."""
        size, device, stream = self.metadata.pop(address)
        call = self._held.call_free_elsewhere if elsewhere else self._held.call_free
        call(self.function("free"), ctypes.c_void_p(address), ctypes.c_size_t(size), device, ctypes.c_void_p(stream))

    def free_unknown(self, address: int) -> None:
        """What PyTorch itself would refuse."""
        self._held.call_free(self.function("free"), ctypes.c_void_p(address), ctypes.c_size_t(1), 0, None)

    def record(self, address: int, stream: Any) -> None:
        """``Tensor.record_stream``."""
        self._checked(
            self._held.call_record, self.function("record"), ctypes.c_void_p(address), ctypes.c_void_p(int(stream))
        )

    def begin_pool(self) -> None:
        """What the capture of a graph begins with."""
        self._checked(self._held.call_begin_pool, self.function("begin_pool"))

    def set_per_process_memory_fraction(self) -> None:
        """A fraction of the device."""
        self._checked(self._held.call_fraction, self.function("fraction"))

    def allocate_from_many(self, streams: list[Any], threads: int, rounds: int) -> int:
        """Threads of C++ that allocate, record and free; two streams for each device. Returns the refusals."""
        handles = (ctypes.c_void_p * len(streams))(*map(int, streams))
        functions = [self.function(name) for name in ("allocate", "record", "free")]
        return int(self._let_go.call_from_many(*functions, handles, threads, rounds))

    def leave_for_the_end(self, address: int) -> None:
        """Have a destructor free this after the interpreter has ended, and then try to allocate."""
        self._held.leave_for_the_end(self.function("allocate"), self.function("free"), ctypes.c_void_p(address))

    def _checked(self, call: Any, *given: Any) -> None:
        text = ctypes.create_string_buffer(10_000)
        if call(*given, text, ctypes.c_size_t(len(text))):
            raise RuntimeError(text.value.decode())

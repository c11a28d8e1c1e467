"""cuBLAS, cuDNN and cuRAND on emulated devices, with the emulator's own libraries; each run in a child process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda.conftest import Child
from tests.cuda.test_faults import START

WORLDS = [(3, 0, 0), (3, 300, 1), (4, 1000, 2)]
OPTIONS = ("-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly", "--strict-markers")
FILES = {
    "handles": ("tests/cuda/inside_handles.py",),
    "dnn": ("tests/cuda/inside_dnn.py",),
    "measure": ("tests/cuda/inside_measure.py",),
    "states": (
        "tests/dnn/test_states.py",
        "tests/dnn/test_scratch.py",
        "tests/dnn/test_tree.py",
        "tests/dnn/test_workspace.py",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "jitter", "seed"), WORLDS, ids=["on-time", "late", "later"])
@pytest.mark.parametrize("what", FILES)
def test_the_tests_inside_pass(emulated: Child, what: str, devices: int, jitter: int, seed: int) -> None:
    """The handles and plans; and the tests of library states, in their cuDNN form."""
    settings: dict[str, Any] = {"devices": devices, "jitter_us": jitter, "seed": seed, "libraries": True}
    out = emulated("", "-m", "pytest", *OPTIONS, *FILES[what], **settings)
    assert " passed" in out


def test_where_no_library_was_asked_for_the_error_says_what_to_do(emulated: Child) -> None:
    emulated(
        START
        + r"""
from tazza.dnn import CudnnWrapper
with tz.CUDAContext() as ctx:
    for use in (ctx.cudnn_handle, ctx.cublas_handle, ctx.curand_generator, lambda: CudnnWrapper(ctx)):
        with pytest.raises(BackendUnavailableError, match=r"pip install nvidia-cu.*start\(libraries=True\)"): use()
    assert ctx.health and ctx.to_numpy(ctx.asarray(np.ones(3))).sum() == 3
"""
    )


def test_without_the_path_finder_the_error_names_it(emulated: Child) -> None:
    emulated(
        START
        + """
import sys
with tz.CUDAContext() as ctx:
    ctx.allocate(8)  # the bindings of the driver need it too
    sys.modules["cuda.pathfinder"] = None
    with pytest.raises(BackendUnavailableError, match="cuda.pathfinder.*tazza.cuda13"): ctx.cudnn_handle()
""",
        libraries=True,
    )


FOREIGN = """
import sys, tempfile, types
from pathlib import Path
from cuda_emulator.compiler import find_c_compiler
from tazza.drivers.cuda import libraries
folder = Path(tempfile.mkdtemp())
def find(path):
    told = types.SimpleNamespace(abs_path=str(path), found_via="test")
    sys.modules["cuda.pathfinder"] = types.SimpleNamespace(load_nvidia_dynamic_lib=lambda name: told)
def built(source):
    path = folder / "libcudnn.so.9"
    find_c_compiler().run(["-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], source)
    return path
SOURCE = '''
int cudnnGetProperty(int which, int *value) { *value = which ? 0 : 9; return 0; }
int cudnnGraphVersionCheck(void) { return 1002; }
const char *cudnnGetErrorString(int status) { return "CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH"; }
void cudnnGetLastErrorString(char *text, unsigned long size) { text[0] = 0; }
'''
"""


def test_libraries_of_nvidias_are_refused_on_the_emulated_driver(emulated: Child) -> None:
    emulated(
        START
        + FOREIGN
        + """
with tz.CUDAContext() as ctx:
    ctx.allocate(8)
    find(built(SOURCE))
    with pytest.raises(BackendUnavailableError, match="does not run on the emulated driver"): ctx.cudnn_handle()
"""
    )


def test_parts_that_do_not_fit_are_refused(emulated: Child) -> None:
    emulated(
        START
        + FOREIGN
        + """
with tz.CUDAContext() as ctx:
    ctx.allocate(8)
    libraries.is_emulated = lambda: False
    find(built(SOURCE))
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match="cudnnGraphVersionCheck says .*VERSION_MISMATCH: no text"):
            ctx.cudnn_handle()
"""
    )


def test_parts_of_two_installations_are_refused(emulated: Child) -> None:
    emulated(
        START
        + FOREIGN
        + """
import shutil
second = folder / "libcudnn.so.9"
shutil.copy(cuda_emulator.libraries() / "libcudnn.so.9", second)
with tz.CUDAContext() as ctx:
    ctx.allocate(8)
    find(second)
    with pytest.raises(BackendUnavailableError, match="parts of two installations"): ctx.cudnn_handle()
""",
        libraries=True,
    )


def test_libraries_for_two_versions_of_cuda_are_refused_before_the_second_is_used(emulated: Child) -> None:
    """cuBLAS of one wheel is in use when cuDNN of another is asked for; the doctor has the same check."""
    emulated(
        START
        + FOREIGN
        + """
import logging
from tests.doctor.planted import install
logging.getLogger("tazza.cuda").setLevel("INFO")
logged = []
logging.getLogger("tazza.cuda").addFilter(lambda record: logged.append(record.getMessage()))
libraries.is_emulated = lambda: False
libraries._served = lambda: "13.0"
SOURCE = '''
const char *NAMEGetErrorString(int status) { return "x"; }
int NAMEGetProperty(int which, int *value) { *value = which ? 0 : MAJOR; return 0; }
'''
def planted(wheel, name, file, major):
    folder = Path(tempfile.mkdtemp())
    install(folder, wheel, f"{major}.0.0.1", {f"nvidia/lib/{file}": ""})
    path = folder / "nvidia/lib" / file
    source = SOURCE.replace("NAME", name).replace("MAJOR", str(major))
    find_c_compiler().run(["-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], source)
    find(path)
    return folder
planted("nvidia-cublas", "cublas", "libcublas.so.13", 13)
cublas = libraries.load_library("cublas")
assert (cublas.owner, cublas.version) == ("nvidia-cublas 13.0.0.1", (13, 0, 0))
planted("nvidia-cudnn-cu12", "cudnn", "libcudnn.so.9", 9)
for _ in range(2):
    with pytest.raises(BackendUnavailableError, match="cudnn is for CUDA 12, cublas is for CUDA 13.*look at .tazza"):
        libraries.load_library("cudnn")
folder = planted("other", "curand", "libcurand.so.10", 10)
assert not logged
assert libraries.load_library("curand").owner == str(folder / "nvidia/lib")
assert len(logged) == 1 and f"curand is from {folder}" in logged[0] and "cublas is from a wheel" in logged[0], logged
libraries._served = lambda: "12.4"
libraries._loaded.clear()
planted("nvidia-cublas", "cublas", "libcublas.so.13", 13)
with pytest.raises(BackendUnavailableError, match="is for CUDA 13; the driver serves 12.4"):
    libraries.load_library("cublas")
"""
    )


SHARED = """
from functools import partial
from tazza.dnn import CudnnWrapper
from tests.dnn.cudnn_calls import backward, conv2d
draws = np.random.default_rng(8)
images = [draws.integers(-3, 4, (4, 4, 7, 6)).astype("f4") for _ in range(4)]
w = draws.integers(-3, 4, (6, 4, 3, 3)).astype("f4")
with tz.open("cpu", dnn="reference") as cpu:
    expected = [cpu.dnn.conv2d(x, w, padding=1) for x in images]
    gradients = [cpu.dnn.conv2d_backward(y, x, w, padding=1) for x, y in zip(images, expected)]
"""


def test_executions_that_share_scratch_memory_are_caught(emulated: Child) -> None:
    """States of which each has the workspace of the first, as a planted mistake, spoil results; their own do not."""
    emulated(
        START
        + SHARED
        + """
with tz.CUDAContext() as ctx:
    wrapper = CudnnWrapper(ctx)
    there, sent, streams = ctx.asarray(w), [ctx.asarray(x) for x in images], [ctx.new_stream() for _ in images]
    ctx.synchronize(timeout=T)
    def spoilt():
        tasks = [ctx.launch(partial(conv2d, wrapper, index=i, padding=1), x, there, None, stream=streams[i])
                 for i, x in enumerate(sent)]
        return [(ctx.to_numpy(task.result(timeout=T)) != y).any() for task, y in zip(tasks, expected)]
    assert not any(spoilt())
    states = [wrapper._states.at(i).state for i in range(4)]
    own = [state.workspace for state in states]
    for state in states: state.workspace = own[0]
    assert any(spoilt()), "four calls in one scratch region without order"
    for state, workspace in zip(states, own): state.workspace = workspace
    assert not any(spoilt())
assert not emulator.report()["n_hazards"]
""",
        libraries=True,
        jitter_us=20_000,
    )


def test_what_lies_in_scratch_memory_changes_no_result(emulated: Child) -> None:
    """Every lease is full of what is no number when a plan gets it."""
    emulated(
        START
        + SHARED
        + """
from tazza.dnn import DnnWorkspace
get = DnnWorkspace.get
def poisoned(self, nbytes):
    lease = get(self, nbytes)
    tz.current().fill(lease.chunk[: nbytes // 4 * 4].view("float32"), float("nan"))
    leases.append(lease.nbytes)
    return lease
DnnWorkspace.get, leases = poisoned, []
with tz.CUDAContext() as ctx:
    wrapper, there = CudnnWrapper(ctx), ctx.asarray(w)
    for x, y, (dx, dw, dbias) in zip(images, expected, gradients):
        sent = ctx.asarray(x)
        made = ctx.launch(partial(conv2d, wrapper, padding=1), sent, there, None).result(timeout=T)
        found = ctx.launch(partial(backward, wrapper, padding=1), made, sent, there, None).result(timeout=T)
        for one, other in zip([made, *found], [y, dx, dw, dbias], strict=True):
            assert (ctx.to_numpy(one) == other).all()
assert len(leases) == 8 and min(leases) > 0
""",
        libraries=True,
        jitter_us=300,
    )


def test_an_algorithm_that_does_not_end_ends_the_search(emulated: Child) -> None:
    emulated(
        START
        + """
import os
from tazza.dnn import Choice, CudnnLibrary
from tazza.errors import WaitTimeoutError
from tests.dnn.cudnn_calls import operation
fine = operation("conv2d", ((1, 2, 5, 5), (2, 2, 3, 3), None), ((1, 2, 3, 3),))
with tz.CUDAContext() as ctx:
    library = CudnnLibrary.of(ctx.device)
    os.environ["TAZZA_WAIT_TIMEOUT"] = "0.001"
    with pytest.raises(WaitTimeoutError, match="not over after 0.001 s") as caught:
        library.compile(fine, Choice("measure", seconds=0))
    assert caught.value.__notes__ == ["algorithm 2 of cudnn was being timed"]
    os.environ["TAZZA_WAIT_TIMEOUT"] = "60"
    assert library.compile(fine, Choice("measure", seconds=0)).algorithm.startswith("forward")
    assert ctx.health and ctx.to_numpy(ctx.asarray(np.ones(3))).sum() == 3
assert not emulator.report()["n_hazards"], emulator.report()["hazards"]
""",
        libraries=True,
        jitter_us=50_000,
        seed=4,
    )


def test_a_forked_child_has_no_handles(emulated: Child) -> None:
    emulated(
        START
        + """
from tests.process.children import in_fork
from tazza.dnn import CudnnWrapper
ctx = tz.CUDAContext()
handle = ctx.cudnn_handle()
def child():
    for use in (ctx.cudnn_handle, ctx.cublas_handle, ctx.curand_generator, lambda: CudnnWrapper(ctx)):
        with pytest.raises(ForkedError): use()
in_fork(child)
assert ctx.cudnn_handle() == handle
ctx.close(timeout=T)
""",
        libraries=True,
    )


def test_the_process_ends_with_handles_and_work(emulated: Child) -> None:
    out = emulated(
        START
        + """
import sys
from functools import partial
from tazza.dnn import CudnnWrapper
from tests.dnn.cudnn_calls import conv2d
sys.stderr = sys.stdout
ctx = tz.CUDAContext()
ctx.cublas_handle(), ctx.cudnn_handle()
x, w = (ctx.asarray(np.ones(shape, "f4")) for shape in ((4, 4, 9, 9), (4, 4, 3, 3)))
kept = [ctx.launch(partial(conv2d, CudnnWrapper(ctx)), x, w, None) for _ in range(10)]
""",
        libraries=True,
        jitter_us=2000,
    )
    assert not out


def test_states_leave_nothing_behind(emulated: Child) -> None:
    emulated(
        START
        + """
import gc
from functools import partial
from tazza.dnn import CudnnWrapper
from tests.dnn.cudnn_calls import conv2d
ctx = tz.CUDAContext()
wrapper = CudnnWrapper(ctx)
x, w = (ctx.asarray(np.ones(shape, "f4")) for shape in ((4, 4, 9, 9), (4, 4, 3, 3)))
for number in range(20):
    ctx.launch(partial(conv2d, wrapper, index=number % 3), x, w, None, stream=ctx.new_stream()).result(timeout=T)
ctx.synchronize(timeout=T)
wrapper.close(T)
assert wrapper.states() == ()
del x, w
gc.collect()
ctx.close(timeout=T)
assert emulator.wait_idle()
ctx.memory.trim()
assert emulator.live_bytes() == 0, emulator.report()["allocations"]
assert not emulator.report()["n_hazards"]
""",
        libraries=True,
        jitter_us=300,
    )


CURAND = """
#include <stddef.h>
unsigned long long seeds[8]; int made, status; void *streams[8];
const char *emulated_library(void) { return "curand"; }
int curandGetProperty(int which, int *value) { *value = which ? 0 : 10; return 0; }
int curandCreateGenerator(void **generator, int kind) { *generator = (void *)(size_t)++made; return kind != 161; }
int curandSetPseudoRandomGeneratorSeed(void *g, unsigned long long seed) { seeds[(size_t)g] = seed; return 0; }
int curandSetGeneratorOffset(void *g, unsigned long long offset) { return offset != 0; }
int curandSetStream(void *g, void *stream) { streams[(size_t)g] = stream; return status; }
"""


def test_generators_of_curand_are_made_seeded_and_bound(emulated: Child) -> None:
    """By a library that only remembers what it was told."""
    emulated(
        START
        + FOREIGN
        + f"CURAND = '''{CURAND}'''"
        + """
import ctypes, gc, threading
def ask(ctx):
    found = []
    thread = threading.Thread(target=lambda: found.append(ctx.curand_generator()))
    thread.start(); thread.join(T)
    gc.collect()
    return found[0]
with tz.CUDAContext(seed=7) as ctx, tz.CUDAContext(seed=7) as same, tz.CUDAContext(seed=8) as other:
    ctx.allocate(8)
    path = built(CURAND)
    find(path)
    first = ctx.curand_generator()
    told = ctypes.CDLL(str(path))
    seeds = (ctypes.c_ulonglong * 8).in_dll(told, "seeds")
    streams = (ctypes.c_void_p * 8).in_dll(told, "streams")
    assert streams[first] == int(ctx.stream.native)
    with ctx.on(ctx.new_stream()) as stream:
        assert ctx.curand_generator() == first and streams[first] == int(ctx.stream.native)
    seed = seeds[first]
    assert seed == int(np.random.SeedSequence(7, spawn_key=(0,)).generate_state(1, np.uint64)[0])
    second = ask(ctx)
    assert second != first and seeds[second] != seed, "threads draw other numbers"
    assert seeds[same.curand_generator()] == seed, "the same seed gives the same numbers"
    assert same.curand_generator() == second, "a thread that ended has left its generator"
    assert seeds[other.curand_generator()] != seed
    ctypes.c_int.in_dll(told, "status").value = 201
    with pytest.raises(BackendError, match="curandSetStream.*LAUNCH_FAILURE"): ctx.curand_generator()
    assert ctx.health
"""
    )

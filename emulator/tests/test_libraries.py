"""The emulated libcudnn.so.9, libcublas.so.13 and libcurand.so.10, each in processes of their own."""

import re
import subprocess
import sys
from pathlib import Path

import cuda_emulator

from .conftest import CONVOLUTION, Passes, Script

HERE = Path(__file__).parent


def test_bias_and_relu(passes: Passes) -> None:
    passes(
        """
device = Device()
handle = handle_of(dnn, device.stream)
def described(*shape):
    made = P(); dnn.cudnnCreateTensorDescriptor(ctypes.byref(made))
    assert not dnn.cudnnSetTensor4dDescriptor(made, 0, 0, *shape)
    return made
how = P(); dnn.cudnnCreateActivationDescriptor(ctypes.byref(how))
assert not dnn.cudnnSetActivationDescriptor(how, 1, 1, ctypes.c_double(0))
x, b, shape = drawn(2, 3, 4, 5), drawn(3), (2, 3, 4, 5)
x[0, 0, 0, 0] = np.nan
there, unit, zero = device.put(x), ctypes.byref(ONE), ctypes.byref(ZERO)
d = described(*shape)
assert not dnn.cudnnAddTensor(handle, unit, described(1, 3, 1, 1), P(device.put(b)), unit, d, P(there)), last_error(dnn)
assert not dnn.cudnnActivationForward(handle, how, unit, d, P(there), zero, d, P(there)), last_error(dnn)
y = device.get(there, shape)
np.testing.assert_array_equal(y, np.maximum(x + b[:, None, None], 0))
dy, dx = drawn(*shape), device.allocate(x.nbytes)
status = dnn.cudnnActivationBackward(handle, how, unit, d, P(there), d, P(device.put(dy)), d, P(there), zero, d, P(dx))
assert status == 0, last_error(dnn)
np.testing.assert_array_equal(device.get(dx, shape), np.where(y > 0, dy, 0))
assert dnn.cudnnAddTensor(handle, unit, described(1, 2, 1, 1), P(there), unit, d, P(there)) == 2008
"""
    )


def test_a_gemm_is_computed(passes: Passes) -> None:
    passes(
        """
device = Device()
blas, handle = library("libcublas.so.13"), P()
assert blas.cublasCreate_v2(ctypes.byref(handle)) == 0
assert blas.cublasSetStream_v2(handle, P(device.stream)) == 0
F = ctypes.c_float
for ta in (0, 1):
    for tb in (0, 1):
        a, b, c = drawn(5, 7), drawn(7, 70), drawn(5, 70)
        sent = [device.put(np.asfortranarray(one.T if turned else one).T) for one, turned in ((a, ta), (b, tb), (c, 0))]
        status = blas.cublasSgemm_v2(handle, ta, tb, 5, 70, 7, ctypes.byref(F(2)), P(sent[0]), 7 if ta else 5,
                                     P(sent[1]), 70 if tb else 7, ctypes.byref(F(0.5)), P(sent[2]), 5)
        assert status == 0
        np.testing.assert_allclose(device.get(sent[2], (70, 5)).T, 2 * a @ b + 0.5 * c, atol=1e-4)
assert blas.cublasSgemm_v2(handle, 0, 0, 5, 70, 7, ctypes.byref(F(1)), P(sent[0]), 4, P(sent[1]), 7, ctypes.byref(F(0)),
                           P(sent[2]), 5) == 7
version = Int()
assert blas.cublasGetVersion_v2(handle, ctypes.byref(version)) == 0 and version.value == 130000
assert blas.cublasSetWorkspace_v2(handle, P(device.allocate(4096)), Z(4096)) == 0
assert blas.cublasSetWorkspace_v2(handle, P(8), Z(4096)) == 7
assert blas.cublasGetStatusName(11) == b"CUBLAS_STATUS_MAPPING_ERROR" and blas.cublasGetStatusString(7)
stream = P()
assert blas.cublasGetStream_v2(handle, ctypes.byref(stream)) == 0 and stream.value == device.stream
assert blas.cublasDestroy_v2(handle) == 0 and blas.cublasDestroy_v2(handle) == 1
assert blas.cublasSetStream_v2(P(8), P(device.stream)) == 1
"""
    )


def test_uniform_numbers_are_philoxs_by_seed_and_offset(passes: Passes) -> None:
    passes(
        """
def philox(seed, place):
    key, x = [seed & 0xFFFFFFFF, seed >> 32], [place // 4, 0, 0, 0]
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [second >> 32 ^ x[1] ^ key[0], second & 0xFFFFFFFF, first >> 32 ^ x[3] ^ key[1], first & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return ((x[place % 4] >> 8) + 1) / 2**24
device, rand, generator = Device(), library("libcurand.so.10"), P()
# The known answer of Random123 for a counter and a key of zeros.
assert philox(0, 0) == ((0x6627E8D5 >> 8) + 1) / 2**24
assert rand.curandCreateGenerator(ctypes.byref(generator), 100) == 103
assert rand.curandCreateGenerator(ctypes.byref(generator), 161) == 0
seed = 0x123456789ABCDEF
assert rand.curandSetPseudoRandomGeneratorSeed(generator, ctypes.c_ulonglong(seed)) == 0
assert rand.curandSetStream(generator, P(device.stream)) == 0 and rand.curandSetStream(generator, P(12345)) == 104
there = device.allocate(4 * 2500)
for first, count in ((0, 2500), (2500, 3), (40, 10)):
    if first == 40: assert rand.curandSetGeneratorOffset(generator, ctypes.c_ulonglong(40)) == 0
    assert rand.curandGenerateUniform(generator, P(there), Z(count)) == 0
    assert device.get(there, (count,)).tolist() == [philox(seed, first + i) for i in range(count)]
assert rand.curandGenerateUniform(generator, P(0), Z(1)) == 104
with emulator.injecting("curandGenerateUniform:1:UNKNOWN;curandSetStream:1:OUT_OF_MEMORY"):
    assert rand.curandGenerateUniform(generator, P(there), Z(1)) == 201
    assert rand.curandSetStream(generator, P(device.stream)) == 102
version = Int()
assert rand.curandGetVersion(ctypes.byref(version)) == 0 and version.value == 100300
assert rand.curandGetProperty(0, ctypes.byref(version)) == 0 and version.value == 10
assert rand.curandDestroyGenerator(generator) == 0 and rand.curandDestroyGenerator(generator) == 101
assert not hazards() and emulator.report()["libraries"]["objects"]["curandGenerator"] == 0
"""
    )


def test_handles_belong_to_their_context_and_end(passes: Passes) -> None:
    passes(
        """
one, two = Device(0), Device(1)
one.enter()
handle = handle_of(dnn, one.stream)
assert dnn.cudnnSetStream(handle, P(two.stream)) == 2007 and "another context" in last_error(dnn)
assert dnn.cudnnSetStream(handle, P(12345)) == 2007
two.enter()
assert dnn.cudnnSetStream(handle, P(two.stream)) == 2000 and "another context than the current" in last_error(dnn)
one.enter()
stream = P()
assert dnn.cudnnGetStream(handle, ctypes.byref(stream)) == 0 and stream.value == one.stream
assert dnn.cudnnDestroy(handle) == 0
for call in (dnn.cudnnDestroy, lambda handle: dnn.cudnnSetStream(handle, P(one.stream))):
    assert call(handle) == 1001 and "destroyed" in last_error(dnn)
    assert call(P(64)) == 1001 and "no handle" in last_error(dnn)
assert dnn.cudnnGetErrorString(2007) == b"CUDNN_STATUS_BAD_PARAM_STREAM_MISMATCH"
assert dnn.cudnnGetVersion() == 90000
part = Int()
assert dnn.cudnnGetProperty(0, ctypes.byref(part)) == 0 and part.value == 9
checked(one.driver.cuCtxSetCurrent(one.driver.CUcontext(0)))
assert dnn.cudnnCreate(ctypes.byref(P())) == 1001 and "no CUDA context" in last_error(dnn)
assert emulator.live_objects() == 2, emulator.report()["objects"]  # the two streams
"""
    )


def test_what_does_not_fit_is_refused(passes: Passes) -> None:
    passes(
        CONVOLUTION
        + """
one = Convolution(dnn, drawn(1, 4, 5, 5), drawn(2, 4, 3, 3))
size, some = one.workspace(handle), device.allocate(1 << 16)
assert size == 4 * 9 * 25 * 4
assert one.forward(handle, some, some, some, some, size - 1) == 2006 and f"needs {size}" in last_error(dnn)
assert one.forward(handle, some, some, some, 0, size) == 2006
assert one.forward(handle, some, some, some, some, size, 1) == 3000
assert one.forward(handle, 0, some, some, some, size) == 2002
other = Convolution(dnn, drawn(1, 4, 6, 5), drawn(2, 4, 3, 3))
one.y_d = other.y_d
assert one.forward(handle, some, some, some, some, size) == 2008 and "(1, 2, 6, 5)" in last_error(dnn)
one.y_d = one.w_d
assert one.forward(handle, some, some, some, some, size) == 2000
assert dnn.cudnnSetTensor4dDescriptor(other.x_d, 0, 2, 1, 1, 1, 1) == 3003  # half
assert dnn.cudnnSetTensor4dDescriptor(other.x_d, 0, 0, 1, 0, 1, 1) == 2000
assert dnn.cudnnSetTensor4dDescriptor(other.x_d, 5, 0, 1, 1, 1, 1) == 3004
assert dnn.cudnnSetConvolution2dDescriptor(other.how, 0, 0, 1, 1, 1, 1, 0, 0) == 3000
assert dnn.cudnnSetConvolution2dDescriptor(other.how, 0, 0, 0, 1, 1, 1, 1, 0) == 2000
assert dnn.cudnnDestroyFilterDescriptor(other.x_d) == 2000
assert dnn.cudnnDestroyTensorDescriptor(other.x_d) == 0
assert not hasattr(dnn, "cudnnPoolingForward")
"""
    )


def test_a_shared_workspace_without_order_spoils_results(passes: Passes) -> None:
    """Streams with one workspace: under some seed a call multiplies the columns of another one."""
    passes(
        CONVOLUTION
        + """
spoilt = []
calls = []
for number in range(4):
    one = Convolution(dnn, drawn(4, 4, 7, 6), drawn(6, 4, 3, 3))
    calls.append((one, device.put(one.x), device.put(one.w), device.allocate(4 * int(np.prod(one.shape)))))
streams = [device.new_stream() for _ in calls]
scratch = [device.allocate(calls[0][0].workspace(handle)) for _ in calls]
for shared in (True, False):
    for (one, x, w, y), stream, own in zip(calls, streams, scratch):
        assert not dnn.cudnnSetStream(handle, P(stream))
        assert not one.forward(handle, x, w, y, scratch[0] if shared else own, one.workspace(handle))
    assert emulator.wait_idle()
    wrong = [not np.allclose(device.get(y, one.shape), one.expected(), atol=1e-4) for one, _, _, y in calls]
    assert any(wrong) == shared, (shared, wrong)
assert not hazards()
""",
        jitter_us=500,
    )


def test_two_threads_in_one_handle_are_a_hazard(passes: Passes) -> None:
    out = passes(
        CONVOLUTION
        + """
def work(handle):
    device.enter()
    for _ in range(2000):
        dnn.cudnnSetStream(handle, P(device.stream))
        if hazards(): break
def together(handles):
    threads = [threading.Thread(target=work, args=(one,)) for one in handles]
    for thread in threads: thread.start()
    for thread in threads: thread.join(60)
together([handle_of(dnn, device.stream) for _ in range(2)])
assert not hazards()
together([handle, handle])
assert "two threads use the handle" in hazards()[0], hazards()
print("found")
""",
        jitter_us=200,
    )
    assert "found" in out


def test_faults_in_its_calls_and_in_its_work(passes: Passes) -> None:
    passes(
        """
device = Device()
with emulator.injecting("cudnnCreate:1:OUT_OF_MEMORY"):
    assert dnn.cudnnCreate(ctypes.byref(P())) == 4004
with emulator.injecting("cuLibraryLoadData:1:INVALID_IMAGE"):
    assert dnn.cudnnCreate(ctypes.byref(P())) == 5001 and "INVALID_IMAGE" in last_error(dnn)
handle = handle_of(dnn, device.stream)
with emulator.injecting("cudnnSetStream:1:UNKNOWN"):
    assert dnn.cudnnSetStream(handle, P(device.stream)) == 5001
    assert dnn.cudnnSetStream(handle, P(device.stream)) == 0
one = Convolution(dnn, drawn(1, 4, 5, 5), drawn(2, 4, 3, 3))
x, w, y, size = device.put(one.x), device.put(one.w), device.allocate(4096), one.workspace(handle)
scratch = device.allocate(size)
with emulator.injecting("cuLaunchKernel:2:LAUNCH_OUT_OF_RESOURCES"):
    assert one.forward(handle, x, w, y, scratch, size) == 5001 and "OUT_OF_RESOURCES" in last_error(dnn)
assert one.forward(handle, x, w, y, scratch, size) == 0
np.testing.assert_allclose(device.get(y, one.shape), one.expected(), atol=1e-4)
with emulator.injecting("@kernel:2:ILLEGAL_ADDRESS"):
    assert one.forward(handle, x, w, y, scratch, size) == 0
    assert int(device.driver.cuStreamSynchronize(device.stream)[0]) == 700
assert one.forward(handle, x, w, y, scratch, size) == 5001 and "ILLEGAL_ADDRESS" in last_error(dnn)
"""
    )


def test_every_call_that_has_a_status_is_counted_and_fails_by_its_name(passes: Passes) -> None:
    """All calls of the libraries, by wrong arguments: a fault comes before they are looked at."""
    passes(
        """
import subprocess
device = Device()
handles = {"cudnn": handle_of(dnn, device.stream), "cublas": P(), "curand": P()}
blas, rand = library("libcublas.so.13"), library("libcurand.so.10")
assert not blas.cublasCreate_v2(ctypes.byref(handles["cublas"]))
assert not rand.curandCreateGenerator(ctypes.byref(handles["curand"]), 161)
silent = {"cudnnGetVersion", "cudnnGetErrorString", "cudnnGetLastErrorString", "cublasGetStatusName",
          "cublasGetStatusString", "emulated_library"}
memory, other = {"cudnn": 4004, "cublas": 3, "curand": 102}, {"cudnn": 5001, "cublas": 13, "curand": 201}
seen = set()
for file, loaded in (("libcudnn.so.9", dnn), ("libcublas.so.13", blas), ("libcurand.so.10", rand)):
    kind, path = file[3:].split(".")[0], cuda_emulator.libraries() / file
    told = subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    for symbol in {line.split()[-1] for line in told.stdout.splitlines()} - silent:
        name, room = symbol.split("_v")[0], (ctypes.c_char * 4096)()
        first = ctypes.byref(room) if "Create" in symbol else Int(0) if "Property" in symbol else handles[kind]
        rest = [Int(161)] if symbol == "curandCreateGenerator" else [ctypes.byref(room)] * 13
        if "Algorithm" in symbol or "WorkspaceSize" in symbol:
            rest[4] = Int(1 if "Backward" in symbol else 2)
        with emulator.injecting(f"{name}:1:OUT_OF_MEMORY;{name}:2:UNKNOWN"):
            assert getattr(loaded, symbol)(first, *rest) == memory[kind], symbol
            status = getattr(loaded, symbol)(first, *rest)
            assert status == (203 if symbol == "curandCreateGenerator" else other[kind]), (symbol, status)
        calls = emulator.report()["libraries"]["calls"]
        assert sum(count for one, count in calls.items() if one.split("_v")[0] == name) >= 2, (name, calls)
        seen.add(symbol)
assert len(seen) > 40, seen
alive = emulator.report()["libraries"]["objects"]
assert alive == {"cudnnHandle": 1, "cublasHandle": 1, "curandGenerator": 1}, alive
made = P()
assert not dnn.cudnnCreateTensorDescriptor(ctypes.byref(made))
with emulator.injecting("cudnnDestroyTensorDescriptor:1:UNKNOWN"):
    assert dnn.cudnnDestroyTensorDescriptor(made) == 5001 and "UNKNOWN" in last_error(dnn)
assert emulator.report()["libraries"]["objects"]["cudnnDescriptor"] == 1
assert not dnn.cudnnDestroyTensorDescriptor(made)
assert not dnn.cudnnDestroy(handles["cudnn"])
alive = emulator.report()["libraries"]["objects"]
assert (alive["cudnnDescriptor"], alive["cudnnHandle"]) == (0, 0)
with emulator.injecting("cublasSetStream:1:LAUNCH_FAILED:sticky"):
    assert blas.cublasSetStream_v2(handles["cublas"], P(device.stream)) == 13
    assert int(device.driver.cuStreamSynchronize(device.stream)[0]) == 719
"""
    )


def test_freed_memory_is_found(passes: Passes) -> None:
    passes(
        CONVOLUTION
        + """
one, y = convolution()
device.finish()
w = device.put(one.w)
checked(device.driver.cuMemFree(w))
size = one.workspace(handle)
one.forward(handle, device.put(one.x), w, y, device.allocate(size), size)
assert int(device.driver.cuStreamSynchronize(device.stream)[0]) == 700
assert any("kernel product" in text for text in hazards()), hazards()
"""
    )


def test_a_forked_child_has_no_library(passes: Passes) -> None:
    passes(
        """
import os
device = Device()
handle = handle_of(dnn, device.stream)
pid = os.fork()
if pid == 0:
    os._exit(0 if dnn.cudnnSetStream(handle, P(device.stream)) == 1001 and dnn.cudnnCreate(ctypes.byref(P())) else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    )


def test_nobody_gets_them_who_did_not_ask(python: Script) -> None:
    done = python(
        "import ctypes, os, cuda_emulator\n"
        "emulator = cuda_emulator.start()\n"
        "for name in ('libcudnn.so.9', 'libcublas.so.13', 'libcurand.so.10'):\n"
        "    try: loaded = ctypes.CDLL(name)\n"
        "    except OSError: continue\n"
        "    assert not hasattr(loaded, 'emulated_library')\n"
        "assert 'libraries-' not in emulator.environment()['LD_LIBRARY_PATH']\n"
        "assert 'libraries-' in cuda_emulator.environment(cuda_emulator.Settings.of(libraries='on'), emulator.library)"
        "['LD_LIBRARY_PATH']\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_command_offers_them() -> None:
    script = (
        "import ctypes; ctypes.CDLL('libcudnn.so.9').emulated_library; ctypes.CDLL('libcublas.so.13').emulated_library"
    )
    command = [sys.executable, "-m", "cuda_emulator", "--libraries", "on", "--", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_readme_lists_every_call() -> None:
    symbols = set()
    for name in ("libcudnn.so.9", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"):
        path = cuda_emulator.libraries() / name
        told = subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        symbols |= {line.split()[-1] for line in told.stdout.splitlines()}
    text = (HERE.parent / "README.md").read_text().partition("## cuDNN, cuBLAS and cuRAND")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(cu(?:dnn|blas|rand)[A-Z]\w+|emulated_library)`", text)) == symbols


def test_it_cannot_be_loaded_over_another_driver() -> None:
    path = cuda_emulator.libraries() / "libcudnn.so.9"
    told = subprocess.run(["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True)
    assert "emulator_library_call" in told.stdout

"""PyTorch's memory in contexts where a whole process is needed: its end, a fork, an installation without the door.

What happens in between is in inside_torch_memory.py. The test marked `gpu` uses PyTorch itself.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tazza.adapters import torch_memory
from tests.cuda.conftest import Child
from tests.cuda.test_faults import START
from tests.cuda.torch_stand_in import build

SYMBOLS = ("allocate", "free", "record", "begin_pool", "memory_fraction", "open", "shut", "waiting", "take")

INSTALL = (
    START
    + """
import os, sys, threading
from pathlib import Path
from tazza.adapters import torch_memory
from tazza.adapters.torch import own_process
from tests.cuda.torch_stand_in import Torch
door, caller = Path(DOOR), Path(CALLER)
torch_memory.library_path = lambda: door
torch = Torch(caller)
sys.modules["torch"] = torch.module()
ctx = tz.context("cuda:0")
def live():  # once what was dropped has come back
    from cuda.bindings import driver
    ctx.synchronize(T)
    driver.cuCtxPushCurrent(driver.CUcontext(ctx.native.context))
    driver.cuCtxSynchronize()
    driver.cuCtxPopCurrent()
    ctx.synchronize(T)
    return ctx.memory.stats().live
"""
)


@pytest.fixture
def installed(tmp_path: Path, emulated: Child) -> str:
    """A script's beginning, in which PyTorch's memory can be made a context's."""
    door, caller = build(tmp_path)
    return INSTALL.replace("DOOR", repr(str(door))).replace("CALLER", repr(str(caller)))


def test_after_the_end_of_the_interpreter_nobody_enters_it(emulated: Child, installed: str) -> None:
    """Destructors of other libraries run then: they may free, and what they ask for is refused."""
    out = emulated(
        installed
        + """
sys.stderr = sys.stdout
own_process(ctx)
torch.leave_for_the_end(torch.allocate(1000))
torch.allocate(1000)  # and one that nobody frees
"""
    )
    assert out == "tazza: the interpreter is exiting, so PyTorch gets no more CUDA memory\n"


def test_the_end_waits_for_allocations_and_refuses_new_ones(emulated: Child, installed: str) -> None:
    emulated(
        installed
        + """
own_process(ctx)
door, entered, gate, found = torch_memory._state.door, threading.Event(), threading.Event(), []
allocate = door.allocate
def late(*given):
    entered.set()
    assert gate.wait(T)
    return allocate(*given)
door.allocate = late
thread = threading.Thread(target=lambda: found.append(torch.allocate(1000, elsewhere=True)))
thread.start()
assert entered.wait(T)
os.environ["TAZZA_EXIT_TIMEOUT"] = "0.01"
with pytest.warns(CleanupWarning, match="leaves 1 thread"): door.shut()
with pytest.raises(RuntimeError, match="tazza: the interpreter is exiting"): torch.allocate(1000)
os.environ["TAZZA_EXIT_TIMEOUT"] = "20"
threading.Timer(0.05, gate.set).start()
door.shut()
thread.join(T)
assert len(found) == 1
torch.free(found[0])
assert live() == 0
"""
    )


def test_a_forked_child_gets_nothing_and_frees_nothing(emulated: Child, installed: str) -> None:
    emulated(
        installed
        + """
from tests.process.children import in_fork
own_process(ctx)
address = torch.allocate(1000)
freed = torch.allocate(1000)
torch.free(freed)
def child():
    with pytest.raises(RuntimeError, match="tazza: ForkedError"): torch.allocate(1000)
    with pytest.raises(ForkedError, match="before this process was forked"): own_process(ctx)
    torch.record(address, 0)
    torch.free(address)
    door = torch_memory._state.door
    assert not door._quick.tazza_torch_waiting() and door._take(None, 0) == 0
    door.shut()
in_fork(child)
torch.free(address)
assert live() == 0
"""
    )


def test_what_speaks_against_it_is_said_and_changes_nothing(emulated: Child, installed: str) -> None:
    emulated(
        installed
        + """
torch_memory.library_path = lambda: None
with pytest.raises(BackendUnavailableError, match="without its part in C.*install a C.. compiler"): own_process(ctx)
torch_memory.library_path = lambda: door
torch.used = True
with pytest.raises(UsageError, match="has to be called before PyTorch uses CUDA: Can't swap"): own_process(ctx)
torch.used = False
from tests.cuda.torch_stand_in import _Hooks
setter = _Hooks.set_begin_allocate_to_pool
del _Hooks.set_begin_allocate_to_pool
with pytest.raises(BackendUnavailableError, match="PyTorch 2.13.0 has no set_begin_allocate_to_pool"): own_process(ctx)
_Hooks.set_begin_allocate_to_pool = setter
assert torch_memory._state.door is None
own_process(ctx)
torch.free(torch.allocate(10))
ctx.close(timeout=T)
with pytest.raises(RuntimeError, match="tazza: ClosedError"): torch.allocate(10)
"""
    )


def test_a_lost_device_refuses_and_lets_go(emulated: Child, installed: str) -> None:
    emulated(
        installed
        + """
own_process(ctx)
first, second = torch.allocate(1000), torch.allocate(1000)
torch.free(first)
emulator.lose_device(0)
with pytest.raises(RuntimeError, match="tazza: DeviceLostError"): torch.allocate(10)
torch.free(second)
for _ in range(3):
    with pytest.raises(DeviceLostError): ctx.synchronize(T)
assert ctx.memory.stats().live == 0
"""
    )


def test_the_compiled_door_is_whole() -> None:
    path = torch_memory.library_path()
    if path is None:
        pytest.skip("tazza was installed without its part in C++")
    import ctypes

    library = ctypes.CDLL(str(path))
    assert all(hasattr(library, f"tazza_torch_{name}") for name in SYMBOLS)


@pytest.mark.gpu
def test_pytorch_itself_has_our_memory() -> None:
    """In a process of its own, as it is for good."""
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("needs cuda: pip install 'tazza[cuda13]'")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        pytest.skip("needs PyTorch for CUDA and a real device")
    if torch_memory.library_path() is None:
        pytest.skip("tazza was installed without its part in C++")
    done = subprocess.run(
        [sys.executable, "-c", WITH_PYTORCH], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


WITH_PYTORCH = """
import gc, torch, tazza as tz
from tazza.adapters.torch import own_process
ctx = tz.context("cuda:0", memory_limit="512MiB")
own_process(ctx)
def live():
    gc.collect(); torch.cuda.synchronize(); ctx.synchronize(20); torch.cuda.synchronize(); ctx.synchronize(20)
    return ctx.memory.stats().live
assert torch.cuda.get_allocator_backend() == "pluggable"
x = torch.ones(1000, 1000, device="cuda", requires_grad=True)
assert ctx.memory.stats().live >= 4_000_000 and ctx.memory.holders()[0][0] == "torch"
(x @ x).relu().sum().backward()  # a product, and a thread of autograd's that Python did not make
assert (x.grad == 2000).all()
before = live()
side = torch.cuda.Stream()
for number in range(20):
    y = torch.full((1000, 1000), float(number), device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        z = y + 1
    y.record_stream(side)
    del y
    torch.full((1000, 1000), -1.0, device="cuda")
    side.synchronize()
    assert (z == number + 1).all()
try:
    torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
except RuntimeError as error:
    assert str(error).startswith("tazza: OutOfMemoryError: "), error
else:
    raise AssertionError("the limit does not bind")
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()): pass
except RuntimeError: pass
else:
    raise AssertionError("a graph was captured")
with ctx.bind():
    bound = torch.arange(1000.0)
    with tz.borrow(bound, stream=ctx.stream) as lent: ctx.fill(lent, 3.0)
    assert (bound == 3).all()
for call in (torch.cuda.memory_allocated, torch.cuda.memory_snapshot, torch.cuda.MemPool):
    try: call()
    except RuntimeError: pass
    else: raise AssertionError(call)
z = bound = None
assert live() <= before
del x
print("fine")
"""

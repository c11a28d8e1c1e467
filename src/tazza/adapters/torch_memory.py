"""PyTorch's CUDA memory from the pools of contexts: `own_process`, which is for the whole process and for good.

PyTorch asks through the functions of `torch_memory.cpp`, which is compiled with tazza where there is a C++ compiler. An
allocation enters Python; what it frees and records lies in a list there, for the next allocation, check or relief of
memory to take back (docs/design/0025-pytorch-memory.md).
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import threading
from collections import deque
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple, final

from tazza import config
from tazza.core.context import Context
from tazza.core.event import Event
from tazza.errors import (
    ArgumentError,
    BackendError,
    BackendUnavailableError,
    CleanupWarning,
    DeviceLostError,
    ForkedError,
    UnsupportedError,
    UsageError,
)
from tazza.hot import Buffer, after_fork, generation, top
from tazza.util.report import report

__all__ = ["REFUSED", "own_process"]

REFUSED = "tazza: OutOfMemoryError: "
"""How the RuntimeError begins in which PyTorch tells of a refusal."""

_HOOKS = {
    "set_record_stream_fn": "tazza_torch_record",
    "set_begin_allocate_to_pool": "tazza_torch_begin_pool",
    "set_memory_fraction_fn": "tazza_torch_memory_fraction",
}
_ROOM = 512  # numbers taken from the door at a time
_LOOK = 1.0  # seconds to wait for another thread's look; whoever looks may be held up by a finaliser
_ASK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
    ctypes.c_size_t,
)


def own_process(*contexts: Context) -> None:
    """Have all CUDA memory of PyTorch come from contexts: in this whole process, and for good.

    To be called once, before PyTorch has used CUDA. From then on a tensor is charged to the context that is current
    where PyTorch allocates it, if that is on the device, and to the budgets in it; else to the context given here.
    Memory comes after what tazza has queued on it, and is given out again after what is on the stream of the
    allocation, and on those of ``Tensor.record_stream``, when it is dropped. What PyTorch loses is listed in
    ``docs/concepts/array.md``. Called again with the same contexts it does nothing.

    A refusal is raised by PyTorch, as a RuntimeError whose text begins with ``tazza: OutOfMemoryError:``.

    Args:
        contexts: one for each device that PyTorch will use; they stay open as long as the process uses it.

    Raises:
        ArgumentError: no context, not one of CUDA, or two on one device.
        BackendUnavailableError: PyTorch cannot be imported or has no CUDA, or tazza was installed without a compiler
            for C++.
        UsageError: PyTorch has used CUDA already, or its memory is other contexts'.
        ForkedError: in a process forked from one where this was called.
    """
    ours = _by_ordinal(contexts)
    with _state.lock:
        door = _state.door
        if door is None:
            _state.door = _install(ours)
        elif door.generation != generation():
            raise ForkedError("PyTorch's CUDA memory was made tazza's before this process was forked; spawn it instead")
        elif list(door.contexts.items()) != list(ours.items()):
            raise UsageError(
                f"PyTorch's memory is that of {list(door.contexts.values())} for as long as this process lives, so it "
                f"cannot become that of {list(contexts)}"
            )


def _by_ordinal(contexts: tuple[Context, ...]) -> dict[int, Context]:
    ours: dict[int, Context] = {}
    for context in contexts:
        if not isinstance(context, Context) or context.device.kind != "cuda":
            raise ArgumentError.of("contexts", context, "contexts on CUDA devices")
        if context.device.info.ordinal in ours:
            raise ArgumentError.of("contexts", context, f"one context on {context.device}")
        ours[context.device.info.ordinal] = context
    if not ours:
        raise ArgumentError.of("contexts", contexts, "at least one context")
    return dict(sorted(ours.items()))


def _install(ours: dict[int, Context]) -> _Door:
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        raise BackendUnavailableError("torch", f"{type(error).__name__}: {error}", "pip install torch") from error
    if torch.version.cuda is None:
        raise BackendUnavailableError("torch", f"PyTorch {torch.__version__} has no CUDA", "install its build for CUDA")
    path = library_path()
    if path is None:
        raise BackendUnavailableError(
            "torch", "tazza was installed without its part in C++", "install a C++ compiler, and tazza again"
        )
    door = _Door(path, ours)
    memory = torch.cuda.memory
    allocator = memory.CUDAPluggableAllocator(str(path), "tazza_torch_allocate", "tazza_torch_free")
    hooks = allocator.allocator()
    for setter, name in _HOOKS.items():
        if not hasattr(hooks, setter):
            raise BackendUnavailableError(
                "torch", f"PyTorch {torch.__version__} has no {setter}", "install a newer one"
            )
        getattr(hooks, setter)(door.address_of(name))
    door.open()
    try:
        memory.change_current_allocator(allocator)
    except RuntimeError as error:
        door.close()
        raise UsageError(f"own_process() has to be called before PyTorch uses CUDA: {error}") from error
    atexit.register(door.shut)
    return door


def library_path() -> Path | None:
    """Where `torch_memory.cpp` was compiled to, or None where it was not."""
    found = (Path(__file__).with_name(f"_torch_memory{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.exists()), None)


class _Lent(NamedTuple):
    """Memory that PyTorch has, by its address in `_Door.lent`."""

    buffer: Buffer
    returns: _Returns


@final
class _Door:
    """The Python side of `torch_memory.cpp`."""

    def __init__(self, path: Path, contexts: dict[int, Context]) -> None:
        self.contexts = contexts
        self.generation = generation()
        self.lent: dict[int, _Lent] = {}
        self._returns: dict[Any, _Returns] = {}
        self._quick: Any = ctypes.PyDLL(str(path))  # calls that wait for nothing keep the interpreter's lock
        self._waiting: Any = ctypes.CDLL(str(path))
        self._take = self._quick.tazza_torch_take
        self._take.restype, self._take.argtypes = ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t]
        self._ask = _ASK(self._answer)

    def address_of(self, name: str) -> int:
        """The address of a function, as PyTorch takes it."""
        return int(ctypes.cast(getattr(self._quick, name), ctypes.c_void_p).value or 0)

    def open(self) -> None:
        """Serve allocations from now on."""
        self._quick.tazza_torch_open(self._ask)

    def close(self) -> None:
        """Serve none: PyTorch did not take the door."""
        self._quick.tazza_torch_open(None)

    def shut(self) -> None:
        """Refuse allocations from now on: the interpreter is about to end, and nobody may enter it after that."""
        left = self._waiting.tazza_torch_shut(int(config.exit_timeout() * 1000))
        if left:
            report(f"interpreter exit leaves {left} thread(s) in which PyTorch waits for memory", CleanupWarning)

    def _answer(self, size: int, ordinal: int, stream: int | None, address: Any, text: int, room: int) -> int:
        try:
            address[0] = self.allocate(size, ordinal, stream or 0)
        except BaseException as error:  # no exception of Python may cross C++, which throws one of its own
            # PyTorch decodes what it is given, and a text may have been cut anywhere.
            reason = f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace")[: room - 1] + b"\0"
            ctypes.memmove(text, reason, len(reason))
            return 0
        return 1

    def allocate(self, size: int, ordinal: int, stream: int) -> int:
        """Allocate for a stream of PyTorch's; returns the address."""
        context: Any = self._context_for(ordinal)
        runtime = context._runtime
        runtime.check()  # takes back what PyTorch has freed
        if runtime.exports.captures_here:  # the graph would have to know of all later uses
            raise UnsupportedError("PyTorch's allocations cannot be captured: let it allocate before or after")
        buffer = context.allocate(size, label="torch")
        runtime.exports.hand_over(buffer, stream)
        address = int(buffer.address)
        self.lent[address] = _Lent(buffer, self._returns_of(runtime))
        return address

    def _returns_of(self, runtime: Any) -> _Returns:
        known = self._returns.get(runtime)
        if known is None:
            mine = _Returns(self, runtime)
            known = self._returns.setdefault(runtime, mine)  # one step: two threads may come here
            if known is mine:
                runtime.loans.append(mine)
        return known

    def _context_for(self, ordinal: int) -> Context:
        """The current context where it is on that device, else ours for that."""
        frame = top()
        current: Any = None if frame is None else frame.context
        if isinstance(current, Context) and current.device.kind == "cuda" and current.device.info.ordinal == ordinal:
            return current
        if ordinal not in self.contexts:
            known = [str(context.device) for context in self.contexts.values()]
            raise UsageError(
                f"PyTorch allocates on cuda:{ordinal}, of which own_process() got no context; it has {known}"
            )
        return self.contexts[ordinal]

    def take_back(self) -> None:
        """Sort what PyTorch has freed by the devices that it is of."""
        room = _ROOM
        while self._quick.tazza_torch_waiting():
            numbers = (ctypes.c_uint64 * room)()
            written = self._take(numbers, room)
            if written > room:  # one block that very many streams used
                room = written
                continue
            self._sort(deque(numbers[:written]))

    def _sort(self, numbers: deque[int]) -> None:
        while numbers:
            address, count = numbers.popleft(), numbers.popleft()
            streams = tuple(sorted(numbers.popleft() for _ in range(count)))
            lent = self.lent.pop(address, None) if count else None
            if lent is None:
                report(f"PyTorch freed {address:#x}, which it did not have from tazza: ignored", CleanupWarning)
            else:
                lent.returns.inbox.append((lent.buffer, streams))


@final
class _Returns:
    """What PyTorch has freed on one device: one of ``DeviceRuntime.loans``, for good.

    Memory that was freed between two looks and used by the same streams shares one event on each of those. They are
    over in the order in which they were recorded, so only the oldest is looked at.
    """

    def __init__(self, door: _Door, runtime: Any) -> None:
        self.inbox: deque[tuple[Buffer, tuple[int, ...]]] = deque()
        self._door, self._runtime = door, runtime
        self._unmarked: dict[tuple[int, ...], list[Buffer]] = {}
        self._marked: dict[tuple[int, ...], deque[tuple[list[Event], list[Buffer]]]] = {}
        self._lock, self._looking = threading.RLock(), False

    @property
    def pending(self) -> list[Event]:
        """What the memory is kept for."""
        batches = [batch for queue in list(self._marked.values()) for batch in list(queue)]
        return [event for events, _ in batches for event in events]

    def end(self) -> bool:
        """Let go of what no stream uses any more, and stay among the loans.

        Meanwhile too: another thread that needs memory has to find it there, and waits for this look to be over.
        """
        loans = self._runtime.loans
        if self._runtime.generation != generation():
            return True
        if self not in loans:
            loans.append(self)
        if self._lock.acquire(timeout=_LOOK):
            try:
                if not self._looking:  # else it is further up this stack, and this is a finaliser
                    self._looking = True
                    try:
                        self._look()
                    finally:
                        self._looking = False
            finally:
                self._lock.release()
        return True

    def _look(self) -> None:
        self._door.take_back()
        while self.inbox:  # taken out last: an interruption must not let go of memory in use
            buffer, streams = self.inbox[0]
            self._unmarked.setdefault(streams, []).append(buffer)
            self.inbox.popleft()
        lost = self._runtime.lost() is not None
        if lost or not self._runtime.exports.captures_here:  # an event recorded in a capture says nothing
            for streams in list(self._unmarked):
                self._mark(streams, lost)
        for queue in self._marked.values():
            while queue and all(event.poll() for event in queue[0][0]):
                queue.popleft()

    def _mark(self, streams: tuple[int, ...], lost: bool) -> None:
        """Record what the memory has to outlast."""
        buffers = self._unmarked[streams]
        exports = self._runtime.exports
        try:
            events = [] if lost else [exports.point(exports.queue_of(stream)) for stream in streams]
        except DeviceLostError:  # the next look finds it lost, and lets go
            return
        except (BackendError, ArgumentError) as error:
            _kept.extend(buffers)  # nobody can tell when memory is unused whose stream is gone
            text = f"{len(buffers)} block(s) of PyTorch's stay allocated: a stream that used them was destroyed before"
            report(text, CleanupWarning, error=error)
        else:
            self._marked.setdefault(streams, deque()).append((events, buffers))
        del self._unmarked[streams]


_kept: list[Buffer] = []


class _State:
    """The one door of the process; a forked child has its own lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.door: _Door | None = None

    def renew(self) -> None:
        """Be usable in a forked child."""
        self.lock = threading.Lock()


_state = _State()
after_fork(_state.renew)

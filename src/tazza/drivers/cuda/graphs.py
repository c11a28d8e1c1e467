"""Graphs: captures of streams, what their copies and fills need for as long as the graph lives, and launches."""

from __future__ import annotations

import ctypes
import threading
from typing import Any, final

from tazza.drivers.cuda.moving import fill
from tazza.drivers.cuda.primary import Primary
from tazza.drivers.cuda.status import invoke
from tazza.errors import BackendError, UsageError

__all__ = ["CapturedGraph", "Captures"]

# Every other mode forbids calls that a capture's thread, or all threads, make beside it: cuMemAlloc when a pool grows,
# cuEventQuery when it looks whether work is over. None of them is part of the capture, which has queues of its own.
# https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__STREAM.html (cuThreadExchangeStreamCaptureMode)
_RELAXED = 2
_FREE_ON_LAUNCH = 1  # memory that other libraries allocate in the graph, and do not free there
_UNJOINED = 904
_OF_CAPTURES = range(900, 909)  # a capture that was spoilt ends with an error that says so once more
_SEED = 4096  # bytes of a repeated pattern that come from the host; what follows is doubled on the device
_FILLS = (2, 4)  # widths of patterns, beside one byte, that the driver fills by itself


@final
class _Kept:
    """What the work of a capture names and nobody else holds."""

    def __init__(self) -> None:
        self.seeds: list[Any] = []  # host memory
        self.memory: list[Any] = []  # of the device

    def give_back(self, primary: Primary) -> None:
        """Free it; what the driver refuses is tried again by `Primary.trim`, and the first refusal is raised."""
        self.seeds.clear()
        failed: BackendError | None = None
        while self.memory:
            try:
                primary.give_back("cuMemFree", self.memory.pop())
            except BackendError as error:
                failed = failed or error
        if failed is not None:
            raise failed


@final
class CapturedGraph:
    """A CUgraphExec, which the driver does not launch from two threads at once, and what its work names."""

    __slots__ = ("_kept", "_lock", "_native")

    def __init__(self, native: Any, kept: _Kept) -> None:
        self._native, self._kept, self._lock = native, kept, threading.Lock()

    def launch(self, primary: Primary, queue: Any) -> None:
        """Put the graph into a stream."""
        with self._lock:
            primary.call("cuGraphLaunch", self._native, queue)

    def destroy(self, primary: Primary) -> None:
        """Give it back, all of it even where the driver refuses a part."""
        try:
            primary.give_back("cuGraphExecDestroy", self._native)
        finally:
            self._kept.give_back(primary)


@final
class Captures:
    """The streams of a process that capture now; false while there are none, which is all that other work asks."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def begin(self, primary: Primary, queue: Any) -> None:
        """Have a stream capture."""
        mode = primary.api.CUstreamCaptureMode(_RELAXED)
        primary.call("cuStreamBeginCapture", queue, mode)
        self._kept[int(queue)] = _Kept()

    def join(self, queue: Any, captured: Any) -> None:
        """Note that a stream takes part in the capture of another one."""
        self._kept[int(queue)] = self._kept[int(captured)]

    def end(self, primary: Primary, queue: Any) -> CapturedGraph:
        """End a capture and make its graph executable."""
        kept = self._leave(queue)
        parameters = primary.api.CUDA_GRAPH_INSTANTIATE_PARAMS()
        parameters.flags = _FREE_ON_LAUNCH
        try:
            template = primary.call("cuStreamEndCapture", queue)
            try:
                native = primary.call("cuGraphInstantiateWithParams", template, parameters)
            except BackendError as error:
                _noted(error, primary, "cuGraphDestroy", template)
                raise
            try:
                primary.give_back("cuGraphDestroy", template)
            except BackendError as error:
                _noted(error, primary, "cuGraphExecDestroy", native)
                raise
        except BackendError as error:
            _end(error, primary, kept)
            if error.code == _UNJOINED:
                raise UsageError(
                    "a stream that took part in the capture was not joined: have the captured stream wait for it "
                    "before the capture ends, stream.wait(other)"
                ) from error
            raise
        return CapturedGraph(native, kept)

    def abort(self, primary: Primary, queue: Any) -> None:
        """End a capture without a graph."""
        kept = self._leave(queue)
        try:
            if primary.lost is None:
                self._discard(primary, queue)
        finally:
            kept.give_back(primary)

    def _discard(self, primary: Primary, queue: Any) -> None:
        with primary:
            status, template = invoke(primary.api, "cuStreamEndCapture", queue)
        if not status:
            if int(template):
                primary.give_back("cuGraphDestroy", template)
        elif int(status) not in _OF_CAPTURES:
            raise primary.failed("cuStreamEndCapture", status)

    def _leave(self, queue: Any) -> _Kept:
        kept = self._kept[int(queue)]
        for number in [number for number, one in list(self._kept.items()) if one is kept]:
            del self._kept[number]
        return kept

    # Copies and fills whose helpers outlive the call ------------------------------------------------------------------

    def copy_within(self, primary: Primary, queue: Any, dst: int, src: int, nbytes: int) -> bool:
        """Copy where the ranges overlap in a stream that captures; False where it is none of these."""
        kept = self._kept.get(int(queue))
        if kept is None or dst == src or abs(dst - src) >= nbytes:
            return False
        # Not cuMemAllocAsync: a free that fails is repeated after an event, and events of captures are never over.
        between = primary.call("cuMemAlloc", nbytes, requested=nbytes)
        kept.memory.append(between)
        primary.call("cuMemcpyDtoDAsync", between, src, nbytes, queue)
        primary.call("cuMemcpyDtoDAsync", dst, between, nbytes, queue)
        return True

    def fill(self, primary: Primary, queue: Any, dst: int, pattern: bytes, nbytes: int) -> bool:
        """Fill in a stream that captures; False where it does not."""
        kept, width = self._kept.get(int(queue)), len(pattern)
        if kept is None:
            return False
        if len(set(pattern)) == 1 or (width in _FILLS and dst % width == 0):
            fill(primary, queue, dst, pattern, nbytes)
            return True
        first = min(nbytes, max(1, _SEED // width) * width)
        seed = ctypes.create_string_buffer(pattern * (first // width), first)
        kept.seeds.append(seed)  # each launch copies from it
        primary.call("cuMemcpyHtoDAsync", dst, ctypes.addressof(seed), first, queue)
        while first < nbytes:
            step = min(first, nbytes - first)
            primary.call("cuMemcpyDtoDAsync", dst + first, dst, step, queue)
            first += step
        return True


def _noted(error: BackendError, primary: Primary, call: str, handle: Any) -> None:
    """Give a handle back after a failure, of which a second one becomes a note."""
    try:
        primary.give_back(call, handle)
    except BackendError as second:
        error.add_note(f"then {second}")


def _end(error: BackendError, primary: Primary, kept: _Kept) -> None:
    try:
        kept.give_back(primary)
    except BackendError as second:
        error.add_note(f"then {second}")

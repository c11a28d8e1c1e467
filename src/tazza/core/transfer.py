"""Copies and fills between every pair of memory domains.

| from | to | carried by |
|---|---|---|
| host | host | the stream |
| host | device A | A's queue, from a snapshot if the source is an ordinary array |
| device A | host | A's queue; an ordinary array is complete on return |
| device A | device A | A's queue |
| device A | device B | the stream's device; through the host where there are no peer copies |

Between two devices the order is two-sided: the copy waits for what is queued on the source, and what is queued on the
source's stream later waits for the copy. Zero bytes are always right and touch nothing. A task's result that moves to
the task which takes it needs none of this order and gets none (`fetch`).
"""

from __future__ import annotations

import math
from typing import Any, cast, final

import numpy as np

from tazza.core.arraylib import ArrayLibrary
from tazza.core.completion import timeout_or_default
from tazza.core.event import Event
from tazza.core.failures import Failures
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream, make_runner, making
from tazza.core.submission import Call, Submission, Wait
from tazza.errors import ArgumentError, ClosedError, UnsupportedError, UsageError, WrongDeviceError
from tazza.hot import Buffer, point, top
from tazza.hot.hooks import Operation, emit
from tazza.spi import CopyKind, Handle
from tazza.util.hostmemory import HostMemory, address_of

__all__ = ["copy", "fetch", "fill", "is_contiguous"]

Array = np.ndarray[Any, np.dtype[Any]]
_HOST = "host"
_COURIER_QUEUE = 64  # submissions; the queue is unbounded, this sets how often its markers are


class _Side:
    """One side of a copy: a Buffer, or ordinary host memory."""

    def __init__(self, value: object, *, argument: str, write: bool) -> None:
        if isinstance(value, Buffer):
            value._check()  # the memory of a closed one may be another's, or nobody's
            self.buffer: Buffer | None = value
            self.domain = value.block.owner.info.memory_domain
            self.address, self.nbytes = value.address, value.nbytes
            self.dtype, self.shape, self.strides = value.dtype, value.shape, value.strides
            self.readonly = value.readonly
            self.array: Array | None = None
        else:
            self.array = array = _host_array(value, argument)
            self.buffer, self.domain = None, _HOST
            self.address, self.nbytes = address_of(array), array.nbytes
            self.dtype, self.shape, self.strides = array.dtype, array.shape, array.strides
            self.readonly = not array.flags.writeable
        self.owner = value if self.array is None else self.array
        if write and self.readonly:
            raise ArgumentError.of(argument, value, "writable memory")

    @property
    def runtime(self) -> DeviceRuntime:
        assert self.buffer is not None
        owner: DeviceRuntime = self.buffer.block.owner
        return owner

    @property
    def is_contiguous(self) -> bool:
        return is_contiguous(self)

    @property
    def size(self) -> int:
        """Bytes of the elements, without gaps between them."""
        return self.nbytes if self.dtype is None else math.prod(self.shape) * self.dtype.itemsize

    def view(self) -> Array:
        """The memory as an array, where the calling thread may see it."""
        if self.array is not None:
            return self.array
        dtype = np.dtype(np.uint8) if self.dtype is None else self.dtype
        shape = (self.nbytes,) if self.dtype is None else tuple(self.shape)
        return self.runtime.driver.view(self.runtime.info, self.address, dtype, shape, self.strides, self.readonly)

    def snapshot(self) -> Array:
        """A private contiguous copy of ordinary host memory, so that its owner may change it at once."""
        assert self.array is not None
        return np.array(self.array, order="C", copy=True)

    def mark_used(self, stream: Stream | Runner) -> None:
        if self.buffer is not None and not stream.is_inline:
            self.buffer.used_on(stream)

    def making(self, stream: Stream | Runner) -> tuple[Event, ...]:
        return () if self.buffer is None else making(self.buffer, stream)

    def streams(self) -> list[Any]:
        return [] if self.buffer is None else [used for used in self.buffer._streams() if not used.is_inline]


@final
class _Transfer(Submission):
    """Bytes moved by the driver."""

    __slots__ = ("_addresses", "_kind", "nbytes")

    def __init__(
        self,
        stream: Stream | Runner,
        dst: int,
        src: int,
        nbytes: int,
        kind: CopyKind,
        *,
        needs: tuple[Any, ...] = (),
        holds: tuple[object, ...] = (),
    ) -> None:
        super().__init__(stream, "copy", needs=needs)
        self._addresses, self.nbytes, self._kind, self.holds = (dst, src), nbytes, kind, holds

    def run(self) -> None:
        self.hand_over(None)

    def hand_over(self, queue: Handle | None) -> None:
        for need in self.needs:
            need.raise_outcome()  # what never arrived is not passed on
        runtime = self.stream.runtime
        runtime.driver.copy(runtime.info, queue, *self._addresses, self.nbytes, self._kind)


@final
class _Fill(Submission):
    """Bytes filled by the driver."""

    __slots__ = ("_address", "_pattern", "nbytes")

    def __init__(
        self, stream: Stream, address: int, pattern: bytes, nbytes: int, hold: object, needs: tuple[Event, ...]
    ) -> None:
        super().__init__(stream, "fill", needs=needs)
        self._address, self._pattern, self.nbytes = address, pattern, nbytes
        self.holds = (hold,) if stream.runtime.host_addressable else ()

    def run(self) -> None:
        self.hand_over(None)

    def hand_over(self, queue: Handle | None) -> None:
        runtime = self.stream.runtime
        runtime.driver.fill(runtime.info, queue, self._address, self._pattern, self.nbytes)


def copy(stream: Stream, dst: object, src: object) -> None:
    """Copy `src` into `dst` in the stream's order; see `Context.copy`."""
    target, source = _Side(dst, argument="dst", write=True), _Side(src, argument="src", write=False)
    _check_same(target, source)
    domain = stream.runtime.info.memory_domain
    if domain not in (target.domain, source.domain):
        raise WrongDeviceError(
            f"neither side is memory of {stream.device}: dst is on {target.domain}, src on {source.domain}; "
            "call copy on a context of one of them"
        )
    if target.nbytes == 0:
        return
    if target.array is not None and not stream.is_inline and not stream.runtime.capabilities.host_functions:
        _arrive_first(stream, source)
    if point.listeners is not None:
        emit(Operation("copy", stream=stream, nbytes=target.nbytes, reads=(src,), writes=(dst,)))
    if target.domain == source.domain:
        _copy_within(stream, target, source)
    elif stream.runtime.capabilities.queues:
        _copy_across(stream, target, source)
    else:
        _relay(stream, target, source)
    if target.array is not None and not stream.is_inline:
        stream.settle(timeout_or_default(None))  # ordinary memory has no streams to wait for: complete on return


def _arrive_first(stream: Stream, source: _Side) -> None:
    """Wait, with a timeout, until the source is complete.

    A device's driver that runs no functions of ours may block the caller of a copy to ordinary memory until all before
    it is over, and has no timeout.
    """
    frame = top()
    if frame is not None and frame.task is not None and frame.task.runs_on(stream):
        raise UsageError(
            f"task {frame.task.label!r} runs at its submission on {stream.device} and may only enqueue: copy to pinned "
            "memory, or return the buffer and copy it outside"
        )
    stream.submit(Wait(stream, "copy", needs=source.making(stream)))
    stream.settle(timeout_or_default(None))


def is_contiguous(memory: Any) -> bool:
    """Tell whether something with dtype, shape, strides and nbytes fills its bytes in C order."""
    if memory.dtype is None or memory.strides is None or memory.nbytes == 0:
        return True
    expected = memory.dtype.itemsize
    for extent, stride in zip(reversed(memory.shape), reversed(memory.strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _copy_within(stream: Stream, target: _Side, source: _Side) -> None:
    if source.array is not None and not stream.is_inline:
        source = _Side(source.snapshot(), argument="src", write=False)
    if target.is_contiguous and source.is_contiguous:
        holds = (target.owner, source.owner)
        needed = holds if stream.runtime.host_addressable else ()
        kind, needs = CopyKind.WITHIN, (*target.making(stream), *source.making(stream))
        move = _Transfer(stream, target.address, source.address, target.nbytes, kind, needs=needs, holds=needed)
        stream.submit(move)
    else:
        _require_host_functions(stream)
        needs = (*target.making(stream), *source.making(stream))
        stream.submit(Call(stream, "copy", lambda: np.copyto(_like(target, source), source.view()), needs=needs))
    target.mark_used(stream)
    source.mark_used(stream)


def _copy_across(stream: Stream | Runner, target: _Side, source: _Side, after: tuple[Event, ...] = ()) -> None:
    """A device's own queue moves bytes between its memory and another domain's."""
    _require_contiguous(target, source)
    inward = target.domain == stream.runtime.info.memory_domain
    other = source if inward else target
    if other.domain == _HOST:
        if inward and source.array is not None:
            source = _Side(source.snapshot(), argument="src", write=False)
        needs = (*after, *target.making(stream), *source.making(stream), *_marks(other, stream))
        kind = CopyKind.FROM_HOST if inward else CopyKind.TO_HOST
        holds = (target.array, source.array, other.buffer)
        stream.submit(_Transfer(stream, target.address, source.address, target.nbytes, kind, needs=needs, holds=holds))
    else:
        _copy_between_devices(stream, target, source, other)
    target.mark_used(stream)
    source.mark_used(stream)


def _copy_between_devices(stream: Stream | Runner, target: _Side, source: _Side, other: _Side) -> None:
    needs = (*target.making(stream), *source.making(stream), *_marks(other, stream))
    if _are_peers(stream, other):
        stream.submit(_Transfer(stream, target.address, source.address, target.nbytes, CopyKind.PEER, needs=needs))
    else:
        staging = np.empty(target.nbytes, np.uint8)
        carrier = _carrier(source) if other is source else stream
        origin, kind = address_of(staging), CopyKind.TO_HOST
        carrier.submit(_Transfer(carrier, origin, source.address, source.nbytes, kind, needs=needs, holds=(staging,)))
        staged = (carrier.mark(),)
        last = stream if other is source else _carrier(target)
        kind = CopyKind.FROM_HOST
        last.submit(_Transfer(last, target.address, origin, target.nbytes, kind, needs=staged, holds=(staging,)))
        target.mark_used(last)
        source.mark_used(carrier)
    done = stream.mark()
    for used in other.streams():
        used.follow(done)


def _relay(stream: Stream, target: _Side, source: _Side) -> None:
    """A host stream has the device that owns the other side move the bytes, between its own work before and after.

    All of it is queued now: a carrier that got the copy only when the stream's turn comes could wait for it by then.
    """
    _require_contiguous(target, source)
    carrier = _carrier(source if source.domain != _HOST else target)
    device_side = source if source.domain != _HOST else target
    _copy_across(carrier, target, source, after=(stream.mark(), *_marks(device_side, carrier)))
    target.mark_used(stream)
    source.mark_used(stream)
    stream.wait(carrier.mark())


def _marks(side: _Side, stream: Any) -> tuple[Event, ...]:
    """What the other streams that used a side have queued so far."""
    return tuple(used.mark() for used in side.streams() if used.runner is not stream.runner)


def fetch(stream: Stream, dst: object, src: Buffer) -> None:
    """Copy the result of a finished task out of another memory domain, in the stream's order; on the CPU at once.

    The result is complete. Waiting for the streams that used it, as `copy` does, could be waiting for work that itself
    waits for the task which is about to get this copy.
    """
    target, source = _Side(dst, argument="dst", write=True), _Side(src, argument="src", write=False)
    _require_contiguous(target, source)
    nbytes, host = target.nbytes, not stream.runtime.capabilities.queues
    if nbytes == 0:
        return
    if host:
        courier = _courier(source.runtime)
        courier.bring(target.address, source, (dst, src)).synchronize()
        courier.let_go()
    elif source.domain == _HOST:
        stream.submit(_Transfer(stream, target.address, source.address, nbytes, CopyKind.FROM_HOST, holds=(src,)))
    elif _are_peers(stream, source):
        stream.submit(_Transfer(stream, target.address, source.address, nbytes, CopyKind.PEER))
        source.mark_used(stream)
    else:
        staging = np.empty(nbytes, np.uint8)
        origin, holds = address_of(staging), (staging, src)
        needs = (_courier(source.runtime).bring(origin, source, ()),)
        stream.submit(_Transfer(stream, target.address, origin, nbytes, CopyKind.FROM_HOST, needs=needs, holds=holds))


@final
class _Courier:
    """A queue of a device that brings results of finished tasks to the host: nothing in it waits for anything."""

    def __init__(self, runtime: DeviceRuntime) -> None:
        lane, label = next(iter(runtime.pools.values())).pool.new_lane(), f"{runtime.name} courier"
        self._runner = make_runner(
            runtime, lane, Failures(), label=label, priority=0, max_queued=_COURIER_QUEUE, worker=True
        )

    def bring(self, dst: int, source: _Side, holds: tuple[object, ...]) -> Event:
        """Copy to a host address and return the event of its arrival; `holds` lives until then at least."""
        runner, kind = self._runner, CopyKind.TO_HOST
        runner.submit(_Transfer(runner, dst, source.address, source.nbytes, kind, holds=holds), bounded=False)
        return runner.mark()

    def let_go(self) -> None:
        """Drop what copies that are over held."""
        self._runner.reached(self._runner.submitted)


def _courier(runtime: DeviceRuntime) -> _Courier:
    with runtime.lock:
        if runtime.courier is None:
            runtime.courier = _Courier(runtime)
        return cast(_Courier, runtime.courier)


def _are_peers(stream: Stream | Runner, other: _Side) -> bool:
    return other.runtime.driver is stream.runtime.driver and stream.runtime.capabilities.peer_copy


def fill(stream: Stream, dst: object, value: object) -> None:
    """Fill `dst` with one value in the stream's order; see `Context.fill`."""
    target = _Side(dst, argument="dst", write=True)
    if target.domain != stream.runtime.info.memory_domain:
        raise WrongDeviceError(f"dst is on {target.domain}, not on {stream.device}; call fill on a context there")
    pattern = _pattern(target, value)
    if target.nbytes == 0:
        return
    if point.listeners is not None:
        emit(Operation("fill", stream=stream, nbytes=target.nbytes, writes=(dst,)))
    needs = target.making(stream)
    if target.is_contiguous:
        stream.submit(_Fill(stream, target.address, pattern, target.nbytes, target.owner, needs))
    else:
        _require_host_functions(stream)
        stream.submit(Call(stream, "fill", lambda: _fill_array(target.view(), pattern), needs=needs))
    target.mark_used(stream)
    if target.array is not None and not stream.is_inline:
        stream.settle(timeout_or_default(None))


def copy_here(arrays: ArrayLibrary, dst: object, src: object) -> bool:
    """Copy at once inside a running task; False where a stream must: it may only enqueue, or a side is elsewhere."""
    if not _acts_at_once(arrays) or any(isinstance(one, Buffer) and not arrays.reaches(one) for one in (dst, src)):
        return False
    target, source = _Side(dst, argument="dst", write=True), _Side(src, argument="src", write=False)
    _check_same(target, source)
    into, out = _seen(arrays, dst, "dst"), _seen(arrays, src, "src")
    if (into.dtype, into.shape) == (out.dtype, out.shape):
        np.copyto(into, out)
    elif not (target.is_contiguous and source.is_contiguous):
        raise ArgumentError("dst and src differ in dtype or shape and are not contiguous; give both the same view()")
    elif into.nbytes:
        np.copyto(into.reshape(-1).view(np.uint8), out.reshape(-1).view(np.uint8))
    return True


def fill_here(arrays: ArrayLibrary, dst: object, value: object) -> bool:
    """Fill at once inside a running task; False where it may only enqueue."""
    if not _acts_at_once(arrays):
        return False
    if isinstance(dst, Buffer) and not arrays.reaches(dst):
        raise WrongDeviceError(f"dst is memory of {dst.device}; call fill on a context there")
    target = _Side(dst, argument="dst", write=True)
    pattern = _pattern(target, value)
    if target.nbytes:
        _fill_array(_seen(arrays, dst, "dst"), pattern)
    return True


def _acts_at_once(arrays: ArrayLibrary) -> bool:
    """Tell whether a function runs when its turn comes, rather than at submission."""
    return bool(arrays.context.device.capabilities.host_functions)


def _seen(arrays: ArrayLibrary, side: object, argument: str) -> Array:
    """What a running task sees of one side."""
    return _host_array(arrays.plain(arrays.inside(side)) if isinstance(side, Buffer) else side, argument)


def _fill_array(array: Array, pattern: bytes) -> None:
    """Fill an array of any strides with one element, or repeat bytes over its elements in order."""
    if len(pattern) == array.dtype.itemsize:
        array[...] = np.frombuffer(pattern, array.dtype)[0]
    else:
        repeated = pattern * (array.size * array.dtype.itemsize // len(pattern))
        array[...] = np.frombuffer(repeated, array.dtype).reshape(array.shape)


def _pattern(target: _Side, value: object) -> bytes:
    if isinstance(value, bytes):
        if not value or target.size % len(value):
            raise ArgumentError.of("value", value, f"bytes whose number divides {target.size}")
        return value
    dtype = np.dtype(np.uint8) if target.dtype is None else target.dtype
    try:
        cell = np.asarray(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"value: {value!r} is no {dtype}: {error}") from None
    if cell.ndim:
        raise ArgumentError.of("value", value, f"one {dtype}, or bytes")
    return cell.tobytes()


def _host_array(value: object, argument: str) -> Array:
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(memoryview(value))  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError.of(argument, value, "a Buffer, a NumPy array or anything with a buffer") from None


def _check_same(target: _Side, source: _Side) -> None:
    typed = target.dtype is not None and source.dtype is not None
    if target.size != source.size:
        raise ArgumentError(f"dst has {target.size} bytes and src {source.size}; slice the larger one")
    if typed and (target.dtype != source.dtype or tuple(target.shape) != tuple(source.shape)):
        raise ArgumentError(
            f"dst is {target.dtype}{tuple(target.shape)} and src {source.dtype}{tuple(source.shape)}; "
            "use view(dtype, shape) to reinterpret bytes, or ctx.asarray(x, dtype=...) to convert"
        )


def _like(target: _Side, source: _Side) -> Array:
    """The target as an array of the source's shape, where one of them is untyped bytes."""
    array = target.view()
    if target.dtype is None and source.dtype is not None:
        return HostMemory(target.address, source.dtype, tuple(source.shape), None, owner=array).array()
    if source.dtype is None and target.dtype is not None:
        raise ArgumentError("src is untyped bytes and dst is not contiguous; give src a dtype and shape with view()")
    return array


def _carrier(side: _Side) -> Runner:
    """Who carries a copy on behalf of another device: the side's home stream, else any of its device."""
    home = side.buffer.block.lane.home if side.buffer is not None else None
    for runner in (*([home()] if home is not None else []), *side.runtime.runners()):
        if not runner.closed:
            return cast(Runner, runner)
    raise ClosedError(f"no context on {side.runtime.name} is open to carry the copy; make one with tz.context(...)")


def _require_contiguous(*sides: _Side) -> None:
    for side in sides:
        if not side.is_contiguous:
            raise UnsupportedError(
                f"a copy between memory domains needs contiguous memory, got shape {tuple(side.shape)} with strides "
                f"{side.strides}; copy it to a contiguous array on its own device first"
            )


def _require_host_functions(stream: Stream) -> None:
    if not stream.runtime.capabilities.host_functions:
        raise UnsupportedError(f"{stream.device} copies and fills contiguous memory only; use a kernel for strides")

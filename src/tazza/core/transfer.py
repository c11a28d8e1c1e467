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
the task which takes it needs none of this order and gets none (`fetch`). Strided memory moves in boxes, where the
device has them (`core/strided.py`).
"""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np

from tazza.core.arraylib import ArrayLibrary
from tazza.core.completion import timeout_or_default
from tazza.core.event import Event
from tazza.core.failures import Failures
from tazza.core.moving import Fill, SpreadFill, Transfer
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.side import HOST, Array, Side, host_side, is_contiguous
from tazza.core.stream import Stream, make_runner
from tazza.core.strided import Landing, arranged, landing, overlap
from tazza.core.submission import Call, Wait
from tazza.errors import ArgumentError, ClosedError, UsageError, WrongDeviceError
from tazza.hot import Buffer, point, top
from tazza.hot.hooks import Operation, emit
from tazza.spi import CopyKind
from tazza.util.hostmemory import HostMemory

__all__ = ["copy", "fetch", "fill", "is_contiguous"]

_COURIER_QUEUE = 64  # submissions; the queue is unbounded, this sets how often its markers are


def copy(stream: Stream, dst: object, src: object) -> None:
    """Copy `src` into `dst` in the stream's order; see `Context.copy`."""
    target, source = Side(dst, argument="dst", write=True), Side(src, argument="src", write=False)
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
        emit(Operation("copy", stream=stream, nbytes=target.size, reads=(src,), writes=(dst,)))
    if target.domain == source.domain:
        _copy_within(stream, target, source)
    elif target.array is None or (target.is_contiguous and source.is_contiguous):
        _copy_to_another(stream, target, source)
    else:
        _land(stream, target.array, landing(target, source))
        return
    if target.array is not None and not stream.is_inline:
        stream.settle(timeout_or_default(None))  # ordinary memory has no streams to wait for: complete on return


def _copy_to_another(stream: Stream, target: Side, source: Side) -> None:
    """A copy between two domains, carried by a device, whoever's the stream is."""
    if stream.runtime.capabilities.queues:
        _copy_across(stream, target, source)
    else:
        _relay(stream, target, source)


def _land(stream: Stream, array: Array, place: Landing) -> None:
    """Strided memory of a device into an ordinary array, complete on return: the host puts it into order."""
    _copy_to_another(stream, place.target, place.source)
    if not stream.is_inline:
        stream.settle(timeout_or_default(None))
    if place.view is not None:
        np.copyto(array, place.view)


def _arrive_first(stream: Stream, source: Side) -> None:
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


def _copy_within(stream: Stream, target: Side, source: Side) -> None:
    if source.array is not None and not stream.is_inline:
        source = Side(source.snapshot(), argument="src", write=False)
    if target.is_contiguous and source.is_contiguous:
        holds = (target.owner, source.owner)
        needed = holds if stream.runtime.host_addressable else ()
        kind, needs = CopyKind.WITHIN, (*target.making(stream), *source.making(stream))
        move = Transfer(stream, target.address, source.address, target.nbytes, kind, needs=needs, holds=needed)
        stream.submit(move)
    elif stream.runtime.capabilities.host_functions:
        needs = (*target.making(stream), *source.making(stream))
        stream.submit(Call(stream, "copy", lambda: np.copyto(_like(target, source), source.view()), needs=needs))
    elif not overlap(target, source):
        needs = (*target.making(stream), *source.making(stream))
        stream.submit(Transfer.of(stream, target, source, CopyKind.WITHIN, needs=needs))
    elif (target.address, target.shape, target.strides) != (source.address, source.shape, source.strides):
        _copy_by_temporary(stream, target, source)
    target.mark_used(stream)
    source.mark_used(stream)


def _copy_by_temporary(stream: Stream, target: Side, source: Side) -> None:
    """Within a device, between memory that meets: the order of the boxes could be seen otherwise."""
    typed = target if target.dtype is not None else source
    between = Side(
        stream.context.allocate(target.size, dtype=typed.dtype, shape=typed.shape), argument="dst", write=True
    )
    needs = (*between.making(stream), *source.making(stream))
    steps = [
        Transfer.of(stream, between, source, CopyKind.WITHIN, needs=needs),
        Transfer.of(stream, target, between, CopyKind.WITHIN, needs=target.making(stream)),
    ]
    for step in steps:
        stream.submit(step)
    between.mark_used(stream)


def _copy_across(stream: Stream | Runner, target: Side, source: Side, after: tuple[Event, ...] = ()) -> None:
    """A device's own queue moves bytes between its memory and another domain's."""
    inward = target.domain == stream.runtime.info.memory_domain
    other = source if inward else target
    if other.domain == HOST:
        if inward and source.array is not None:
            source = _taken(target, source)
        needs = (*after, *target.making(stream), *source.making(stream), *_marks(other, stream))
        kind = CopyKind.FROM_HOST if inward else CopyKind.TO_HOST
        holds = (target.array, source.array, other.buffer)
        stream.submit(Transfer.of(stream, target, source, kind, needs=needs, holds=holds))
    else:
        _copy_between_devices(stream, target, source, other)
    target.mark_used(stream)
    source.mark_used(stream)


def _taken(target: Side, source: Side) -> Side:
    """A private copy of ordinary memory, laid out as the device's side that it goes to."""
    assert source.array is not None
    if target.is_contiguous:
        return Side(source.snapshot(), argument="src", write=False)
    taken = arranged(target, source, like=target)
    np.copyto(taken, source.array)
    return Side(taken, argument="src", write=False)


def _copy_between_devices(stream: Stream | Runner, target: Side, source: Side, other: Side) -> None:
    needs = (*target.making(stream), *source.making(stream), *_marks(other, stream))
    if _are_peers(stream, other):
        stream.submit(Transfer.of(stream, target, source, CopyKind.PEER, needs=needs))
    else:
        staging = _staging(target, source)
        carrier, holds = _carrier(source) if other is source else stream, (staging.array,)
        carrier.submit(Transfer.of(carrier, staging, source, CopyKind.TO_HOST, needs=needs, holds=holds))
        staged = (carrier.mark(),)
        last = stream if other is source else _carrier(target)
        last.submit(Transfer.of(last, target, staging, CopyKind.FROM_HOST, needs=staged, holds=holds))
        target.mark_used(last)
        source.mark_used(carrier)
    done = stream.mark()
    for used in other.streams():
        used.follow(done)


def _staging(target: Side, source: Side) -> Side:
    """Host memory between two devices, laid out as the one of them whose memory is strided."""
    if target.is_contiguous and source.is_contiguous:
        array = np.empty(target.size, np.uint8)
    else:
        array = arranged(target, source, like=target if source.is_contiguous else source)
    return Side(array, argument="dst", write=True)


def _relay(stream: Stream, target: Side, source: Side) -> None:
    """A host stream has the device that owns the other side move the bytes, between its own work before and after.

    All of it is queued now: a carrier that got the copy only when the stream's turn comes could wait for it by then.
    """
    carrier = _carrier(source if source.domain != HOST else target)
    device_side = source if source.domain != HOST else target
    _copy_across(carrier, target, source, after=(stream.mark(), *_marks(device_side, carrier)))
    target.mark_used(stream)
    source.mark_used(stream)
    stream.wait(carrier.mark())


def _marks(side: Side, stream: Any) -> tuple[Event, ...]:
    """What the other streams that used a side have queued so far."""
    return tuple(used.mark() for used in side.streams() if used.runner is not stream.runner)


def fetch(stream: Stream, dst: object, src: Buffer) -> None:
    """Copy the result of a finished task out of another memory domain, in the stream's order; on the CPU at once.

    The result is complete. Waiting for the streams that used it, as `copy` does, could be waiting for work that itself
    waits for the task which is about to get this copy.
    """
    target, source = Side(dst, argument="dst", write=True), Side(src, argument="src", write=False)
    if target.nbytes == 0:
        return
    if not stream.runtime.capabilities.queues:
        courier = _courier(source.runtime)
        courier.bring(target, source, (dst, src)).synchronize()
        courier.let_go()
    elif source.domain == HOST:
        stream.submit(Transfer.of(stream, target, source, CopyKind.FROM_HOST, holds=(src,)))
    elif _are_peers(stream, source):
        stream.submit(Transfer.of(stream, target, source, CopyKind.PEER))
        source.mark_used(stream)
    else:
        staging = _staging(target, source)
        holds, needs = (staging.array, src), (_courier(source.runtime).bring(staging, source, ()),)
        stream.submit(Transfer.of(stream, target, staging, CopyKind.FROM_HOST, needs=needs, holds=holds))


@final
class _Courier:
    """A queue of a device that brings results of finished tasks to the host: nothing in it waits for anything."""

    def __init__(self, runtime: DeviceRuntime) -> None:
        lane, label = next(iter(runtime.pools.values())).pool.new_lane(), f"{runtime.name} courier"
        self._runner = make_runner(
            runtime, lane, Failures(), label=label, priority=0, max_queued=_COURIER_QUEUE, worker=True
        )

    def bring(self, target: Side, source: Side, holds: tuple[object, ...]) -> Event:
        """Copy into the host and return the event of its arrival; `holds` lives until then at least."""
        runner = self._runner
        runner.submit(Transfer.of(runner, target, source, CopyKind.TO_HOST, holds=holds), bounded=False)
        return runner.mark()

    def let_go(self) -> None:
        """Drop what copies that are over held."""
        self._runner.reached(self._runner.submitted)


def _courier(runtime: DeviceRuntime) -> _Courier:
    with runtime.lock:
        if runtime.courier is None:
            runtime.courier = _Courier(runtime)
        return cast(_Courier, runtime.courier)


def _are_peers(stream: Stream | Runner, other: Side) -> bool:
    return other.runtime.driver is stream.runtime.driver and stream.runtime.capabilities.peer_copy


def fill(stream: Stream, dst: object, value: object) -> None:
    """Fill `dst` with one value in the stream's order; see `Context.fill`."""
    target = Side(dst, argument="dst", write=True)
    if target.domain != stream.runtime.info.memory_domain:
        raise WrongDeviceError(f"dst is on {target.domain}, not on {stream.device}; call fill on a context there")
    pattern = _pattern(target, value)
    if target.nbytes == 0:
        return
    if point.listeners is not None:
        emit(Operation("fill", stream=stream, nbytes=target.size, writes=(dst,)))
    needs = target.making(stream)
    if target.is_contiguous:
        stream.submit(Fill(stream, target.address, pattern, target.nbytes, target.owner, needs))
    elif stream.runtime.capabilities.host_functions:
        stream.submit(Call(stream, "fill", lambda: _fill_array(target.view(), pattern), needs=needs))
    else:
        _fill_strided(stream, target, pattern, needs)
    target.mark_used(stream)
    if target.array is not None and not stream.is_inline:
        stream.settle(timeout_or_default(None))


def _fill_strided(stream: Stream, target: Side, pattern: bytes, needs: tuple[Event, ...]) -> None:
    """Fill strided memory of a device, by copies of one element or, where they differ, of the host's array of them."""
    assert target.dtype is not None
    times, rest = divmod(target.dtype.itemsize, len(pattern))
    if rest == 0:
        stream.submit(SpreadFill(stream, target, pattern * times, needs))
    else:
        values = np.empty(target.shape, target.dtype)
        _fill_array(values, pattern)
        _copy_across(stream, target, Side(values, argument="value", write=False))


def copy_here(arrays: ArrayLibrary, dst: object, src: object) -> bool:
    """Copy at once inside a running task; False where a stream must: it may only enqueue, or a side is elsewhere."""
    if not _acts_at_once(arrays) or any(isinstance(one, Buffer) and not arrays.reaches(one) for one in (dst, src)):
        return False
    target, source = Side(dst, argument="dst", write=True), Side(src, argument="src", write=False)
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
    target = Side(dst, argument="dst", write=True)
    pattern = _pattern(target, value)
    if target.nbytes:
        _fill_array(_seen(arrays, dst, "dst"), pattern)
    return True


def _acts_at_once(arrays: ArrayLibrary) -> bool:
    """Tell whether a function runs when its turn comes, rather than at submission."""
    return bool(arrays.context.device.capabilities.host_functions)


def _seen(arrays: ArrayLibrary, side: object, argument: str) -> Array:
    """What a running task sees of one side."""
    return host_side(arrays.plain(arrays.inside(side)) if isinstance(side, Buffer) else side, argument)


def _fill_array(array: Array, pattern: bytes) -> None:
    """Fill an array of any strides with one element, or repeat bytes over its elements in order."""
    if len(pattern) == array.dtype.itemsize:
        array[...] = np.frombuffer(pattern, array.dtype)[0]
    else:
        repeated = pattern * (array.size * array.dtype.itemsize // len(pattern))
        array[...] = np.frombuffer(repeated, array.dtype).reshape(array.shape)


def _pattern(target: Side, value: object) -> bytes:
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


def _check_same(target: Side, source: Side) -> None:
    typed = target.dtype is not None and source.dtype is not None
    if target.size != source.size:
        raise ArgumentError(f"dst has {target.size} bytes and src {source.size}; slice the larger one")
    if typed and (target.dtype != source.dtype or tuple(target.shape) != tuple(source.shape)):
        raise ArgumentError(
            f"dst is {target.dtype}{tuple(target.shape)} and src {source.dtype}{tuple(source.shape)}; "
            "use view(dtype, shape) to reinterpret bytes, or ctx.asarray(x, dtype=...) to convert"
        )


def _like(target: Side, source: Side) -> Array:
    """The target as an array of the source's shape, where one of them is untyped bytes."""
    array = target.view()
    if target.dtype is None and source.dtype is not None:
        return HostMemory(target.address, source.dtype, tuple(source.shape), None, owner=array).array()
    if source.dtype is None and target.dtype is not None:
        raise ArgumentError("src is untyped bytes and dst is not contiguous; give src a dtype and shape with view()")
    return array


def _carrier(side: Side) -> Runner:
    """Who carries a copy on behalf of another device: the side's home stream, else any of its device."""
    home = side.buffer.block.lane.home if side.buffer is not None else None
    for runner in (*([home()] if home is not None else []), *side.runtime.runners()):
        if not runner.closed:
            return cast(Runner, runner)
    raise ClosedError(f"no context on {side.runtime.name} is open to carry the copy; make one with tz.context(...)")

"""Capture and graphs."""

import ctypes
import threading
from typing import Any

from cuda.bindings import driver
from programs import Child, context, event, fails, hold, host, kernels, launch, live, ok, pinned, read, stream

INT, UINT = ctypes.c_int, ctypes.c_uint
AFFINE = (None, INT, INT, UINT)
MODE = driver.CUstreamCaptureMode
RELAXED = MODE.CU_STREAM_CAPTURE_MODE_RELAXED


def begin(on: Any, mode: Any = RELAXED) -> None:
    ok(driver.cuStreamBeginCapture(on, mode))


def diamond() -> None:
    """Two branches between a first and a last node: each launch gives what the edges say, in every order they allow."""
    context()
    (add, affine) = kernels("add", "affine")
    one, two = stream(), stream()
    a, b, c = (int(ok(driver.cuMemAlloc(64))) for _ in range(3))
    fork, join = event(), event()
    begin(one)
    ok(driver.cuMemsetD32Async(a, 1, 16, one))
    ok(driver.cuMemsetD32Async(b, 2, 16, one))
    ok(driver.cuEventRecord(fork, one))
    ok(driver.cuStreamWaitEvent(two, fork, 0))
    launch(affine, one, (a, 10, 1, 16), AFFINE, 16)
    launch(affine, one, (a, 10, 1, 16), AFFINE, 16)
    launch(affine, two, (b, 10, 1, 16), AFFINE, 16)
    launch(affine, two, (b, 10, 1, 16), AFFINE, 16)
    fails(driver.cuEventQuery(fork), "CAPTURED_EVENT")
    ok(driver.cuEventRecord(join, two))
    ok(driver.cuStreamWaitEvent(one, join, 0))
    launch(add, one, (a, b, c, 16), (None, None, None, UINT), 16)
    graph = ok(driver.cuStreamEndCapture(one))
    assert ok(driver.cuStreamIsCapturing(two)) == driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
    _nodes, count = ok(driver.cuGraphGetNodes(graph, 20))
    assert count == 7
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphDestroy(graph))
    for _ in range(20):
        ok(driver.cuGraphLaunch(executable, one))
        ok(driver.cuStreamSynchronize(one))
        assert list((INT * 16).from_buffer_copy(read(c, 64))) == [(111 + 211)] * 16
    ok(driver.cuGraphExecDestroy(executable))


def test_branches_and_joins(child: Child) -> None:
    child(diamond, jitter_us=20)


def missing_edge() -> None:
    """As a graph without the edge from the fill to the copy."""
    context()
    one, two = stream(), stream()
    data, target = int(ok(driver.cuMemAlloc(1))), pinned(1)
    fork, join = event(), event()
    begin(one)
    ok(driver.cuEventRecord(fork, one))
    ok(driver.cuStreamWaitEvent(two, fork, 0))
    ok(driver.cuMemsetD8Async(data, 1, 1, one))
    ok(driver.cuMemcpyDtoHAsync(ctypes.addressof(target), data, 1, two))
    ok(driver.cuEventRecord(join, two))
    ok(driver.cuStreamWaitEvent(one, join, 0))
    executable = ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(one)), 0))
    seen = set()
    for _ in range(20):
        ok(driver.cuMemsetD8(data, 0, 1))
        ok(driver.cuCtxSynchronize())
        ok(driver.cuGraphLaunch(executable, one))
        ok(driver.cuStreamSynchronize(one))
        seen.add(target[0])
    assert seen == {0, 1}


def test_a_missing_edge_shows(child: Child) -> None:
    child(missing_edge, jitter_us=10)


def mistakes() -> None:
    context()
    one, two, other = stream(), stream(), stream()
    blocking = stream(blocking=True)
    outside = event()
    ok(driver.cuEventRecord(outside, other))
    fails(driver.cuStreamBeginCapture(driver.CU_STREAM_LEGACY, RELAXED), "STREAM_CAPTURE_UNSUPPORTED")
    begin(one)
    fails(driver.cuStreamBeginCapture(one, RELAXED), "ILLEGAL_STATE")
    fails(driver.cuStreamSynchronize(one), "STREAM_CAPTURE_UNSUPPORTED")
    fails(driver.cuMemsetD8Async(int(ok(driver.cuMemAlloc(1))), 1, 1, one), "STREAM_CAPTURE_INVALIDATED")
    fails(driver.cuStreamEndCapture(one), "STREAM_CAPTURE_INVALIDATED")
    begin(one)
    fails(driver.cuStreamWaitEvent(one, outside, 0), "STREAM_CAPTURE_ISOLATION")
    fails(driver.cuStreamEndCapture(one), "STREAM_CAPTURE_INVALIDATED")
    fork = event()
    begin(one)
    ok(driver.cuEventRecord(fork, one))
    ok(driver.cuStreamWaitEvent(two, fork, 0))
    ok(driver.cuMemsetD8Async(int(ok(driver.cuMemAlloc(1))), 1, 1, two))
    fails(driver.cuStreamEndCapture(one), "STREAM_CAPTURE_UNJOINED")
    begin(one)
    begin(two)
    ok(driver.cuEventRecord(fork, one))
    fails(driver.cuStreamWaitEvent(two, fork, 0), "STREAM_CAPTURE_MERGE")
    fails(driver.cuStreamEndCapture(one), "STREAM_CAPTURE_INVALIDATED")
    fails(driver.cuStreamEndCapture(two), "STREAM_CAPTURE_INVALIDATED")
    begin(blocking)
    fails(driver.cuLaunchHostFunc(0, driver.CUhostFn(1), 0), "STREAM_CAPTURE_IMPLICIT")
    fails(driver.cuStreamEndCapture(blocking), "STREAM_CAPTURE_INVALIDATED")
    begin(one)
    ok(driver.cuMemsetD8Async(int(ok(driver.cuMemAlloc(1))), 1, 1, one))
    *_, nodes, edges, count = ok(driver.cuStreamGetCaptureInfo(one))
    assert (len(nodes), len(edges), count) == (1, 1, 1)
    graph = ok(driver.cuStreamEndCapture(one))
    ok(driver.cuGraphDestroy(graph))
    begin(one, MODE.CU_STREAM_CAPTURE_MODE_GLOBAL)
    fails(driver.cuMemAlloc(1), "STREAM_CAPTURE_UNSUPPORTED")
    fails(driver.cuStreamEndCapture(one), "STREAM_CAPTURE_INVALIDATED")
    begin(one, MODE.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    codes: list[str] = []

    def other_thread() -> None:
        context()
        codes.extend([driver.cuMemAlloc(1)[0].name, driver.cuStreamEndCapture(one)[0].name])

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join(30)
    assert codes == ["CUDA_SUCCESS", "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"]
    ok(driver.cuStreamEndCapture(one))


def test_mistakes_spoil_a_capture(child: Child) -> None:
    child(mistakes)


def memory() -> None:
    """Memory that a graph allocates: there while the graph says, at the same address in every launch."""
    context()
    on = stream()
    target = pinned(4)
    before = live()
    begin(on)
    inner = int(ok(driver.cuMemAllocAsync(4, on)))
    ok(driver.cuMemsetD32Async(inner, 5, 1, on))
    ok(driver.cuMemcpyDtoHAsync(ctypes.addressof(target), inner, 4, on))
    ok(driver.cuMemFreeAsync(inner, on))
    outer = int(ok(driver.cuMemAllocAsync(4, on)))
    ok(driver.cuMemsetD32Async(outer, 6, 1, on))
    graph = ok(driver.cuStreamEndCapture(on))
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    for _ in range(3):
        ok(driver.cuGraphLaunch(executable, on))
        fails(driver.cuGraphLaunch(executable, on), "INVALID_VALUE")  # `outer` is still there
        ok(driver.cuStreamSynchronize(on))
        assert bytes(target) == b"\5\0\0\0"
        assert read(outer, 4) == b"\6\0\0\0"
        ok(driver.cuMemFreeAsync(outer, on))
    ok(driver.cuStreamSynchronize(on))
    used = driver.CUgraphMem_attribute.CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT
    reserved = driver.CUgraphMem_attribute.CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT
    assert (
        int(ok(driver.cuDeviceGetGraphMemAttribute(0, used)))
        == 0
        < int(ok(driver.cuDeviceGetGraphMemAttribute(0, reserved)))
    )
    ok(driver.cuDeviceGraphMemTrim(0))
    assert int(ok(driver.cuDeviceGetGraphMemAttribute(0, reserved))) == 0
    ok(driver.cuGraphExecDestroy(executable))
    ok(driver.cuGraphDestroy(graph))
    assert live() == before
    fails(driver.cuMemcpyDtoH(bytes(4), outer, 4), "INVALID_VALUE")


def test_memory_of_graphs(child: Child) -> None:
    child(memory)


def by_hand() -> None:
    """Nodes added one by one, changed in the graph, in the executable graph, by an update, and disabled."""
    current = context()
    on = stream()
    data = int(ok(driver.cuMemAlloc(8)))
    graph = ok(driver.cuGraphCreate(0))
    fill = driver.CUDA_MEMSET_NODE_PARAMS()
    fill.dst, fill.elementSize, fill.width, fill.height, fill.value = data, 1, 8, 1, 1
    first = ok(driver.cuGraphAddMemsetNode(graph, [], 0, fill, current))
    fill.dst, fill.width, fill.value = data, 4, 2
    second = ok(driver.cuGraphAddMemsetNode(graph, [first], 1, fill, current))
    fails(driver.cuGraphAddDependencies(graph, [second], [first], [driver.CUgraphEdgeData()], 1), "INVALID_VALUE")

    def launched(executable: Any) -> bytes:
        ok(driver.cuGraphLaunch(executable, on))
        ok(driver.cuStreamSynchronize(on))
        return read(data, 8)

    executable = ok(driver.cuGraphInstantiate(graph, 0))
    assert launched(executable) == b"\2" * 4 + b"\1" * 4
    fill.value = 3
    ok(driver.cuGraphExecMemsetNodeSetParams(executable, second, fill, current))
    assert launched(executable) == b"\3" * 4 + b"\1" * 4
    ok(driver.cuGraphNodeSetEnabled(executable, second, 0))
    assert launched(executable) == b"\1" * 8
    ok(driver.cuGraphNodeSetEnabled(executable, second, 1))
    fill.value = 4
    ok(driver.cuGraphMemsetNodeSetParams(second, fill))
    assert ok(driver.cuGraphMemsetNodeGetParams(second)).value == 4
    assert launched(executable) == b"\3" * 4 + b"\1" * 4  # not changed by a change of the graph
    ok(driver.cuGraphExecUpdate(executable, graph))
    assert launched(executable) == b"\4" * 4 + b"\1" * 4
    clone = ok(driver.cuGraphClone(graph))
    parent = ok(driver.cuGraphCreate(0))
    inside = ok(driver.cuGraphAddChildGraphNode(parent, [], 0, clone))
    fill.dst, fill.width, fill.value = data + 7, 1, 9
    ok(driver.cuGraphAddMemsetNode(parent, [inside], 1, fill, current))
    assert launched(ok(driver.cuGraphInstantiate(parent, 0))) == b"\4" * 4 + b"\1" * 3 + b"\t"
    ok(driver.cuGraphDestroyNode(first))
    assert driver.cuGraphExecUpdate(executable, graph)[0].name == "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE"
    fails(driver.cuGraphExecMemsetNodeSetParams(executable, inside, fill, current), "INVALID_VALUE")


def test_graphs_by_hand(child: Child) -> None:
    child(by_hand)


def recorded_and_waited() -> None:
    """Events that a graph records and waits for, for who is outside of it; host functions inside."""
    context()
    on, other = stream(), stream()
    data = int(ok(driver.cuMemAlloc(1)))
    gate = threading.Event()
    made = event()
    graph = ok(driver.cuGraphCreate(0))
    holding = driver.CUDA_HOST_NODE_PARAMS()
    holding.fn = hold(gate)
    first = ok(driver.cuGraphAddHostNode(graph, [], 0, holding))
    fill = driver.CUDA_MEMSET_NODE_PARAMS()
    fill.dst, fill.elementSize, fill.width, fill.height, fill.value = data, 1, 1, 1, 8
    second = ok(driver.cuGraphAddMemsetNode(graph, [first], 1, fill, context()))
    ok(driver.cuGraphAddEventRecordNode(graph, [second], 1, made))
    ok(driver.cuGraphLaunch(ok(driver.cuGraphInstantiate(graph, 0)), on))
    ok(driver.cuStreamWaitEvent(other, made, 0))
    target = pinned(1)
    ok(driver.cuMemcpyDtoHAsync(ctypes.addressof(target), data, 1, other))
    fails(driver.cuStreamQuery(other), "NOT_READY")
    gate.set()
    ok(driver.cuStreamSynchronize(other))
    assert target[0] == 8


def test_events_in_graphs(child: Child) -> None:
    child(recorded_and_waited, jitter_us=100)


def user_objects() -> None:
    context()
    ended = threading.Event()
    graph = ok(driver.cuGraphCreate(0))
    function = host(ended.set)
    made = ok(driver.cuUserObjectCreate(0, function, 1, driver.CUuserObject_flags.CU_USER_OBJECT_NO_DESTRUCTOR_SYNC))
    ok(driver.cuGraphRetainUserObject(graph, made, 1, driver.CUuserObjectRetain_flags.CU_GRAPH_USER_OBJECT_MOVE))
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphDestroy(graph))
    assert not ended.is_set()
    ok(driver.cuGraphExecDestroy(executable))
    assert ended.wait(30)


def test_user_objects_end_with_the_last_graph(child: Child) -> None:
    child(user_objects)


def freed_and_launched_again() -> None:
    """All submitted while nothing runs: the order of the calls is what counts."""
    context()
    on, gate, target = stream(), threading.Event(), pinned(2)
    begin(on)
    data = int(ok(driver.cuMemAllocAsync(1, on)))
    ok(driver.cuMemsetD8Async(data, 5, 1, on))
    executable = ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(on)), 0))
    ok(driver.cuLaunchHostFunc(on, hold(gate), 0))
    for i in range(2):
        ok(driver.cuGraphLaunch(executable, on))
        ok(driver.cuMemcpyDtoHAsync(ctypes.addressof(target) + i, data, 1, on))
        ok(driver.cuMemFreeAsync(data, on))
        fails(driver.cuMemFreeAsync(data, on), "INVALID_VALUE")
    gate.set()
    ok(driver.cuStreamSynchronize(on))
    assert bytes(target) == b"\5\5"


def test_memory_of_a_graph_freed_and_launched_again(child: Child) -> None:
    child(freed_and_launched_again)


def one_at_a_time() -> None:
    """Launches of one executable graph do not overlap, on whatever streams they are."""
    context()
    streams = [stream() for _ in range(4)]
    running, most = 0, 0

    def enter() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)

    def leave() -> None:
        nonlocal running
        running -= 1

    begin(streams[0])
    ok(driver.cuLaunchHostFunc(streams[0], host(enter), 0))
    ok(driver.cuLaunchHostFunc(streams[0], host(leave), 0))
    executable = ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(streams[0])), 0))
    for i in range(40):
        ok(driver.cuGraphLaunch(executable, streams[i % 4]))
    ok(driver.cuCtxSynchronize())
    assert (running, most) == (0, 1)


def test_launches_of_an_executable_graph_do_not_overlap(child: Child) -> None:
    child(one_at_a_time, jitter_us=300)

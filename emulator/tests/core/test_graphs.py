"""GraphBuilder, Graph, GraphMemoryResource and GraphDefinition."""

from pathlib import Path

import numpy as np
import pytest
from cuda.core import Device, GraphMemoryResource, LaunchConfig, LegacyPinnedMemoryResource, ObjectCode, Stream, launch
from cuda.core.graph import GraphBuilder, GraphDefinition

ONE = LaunchConfig(grid=1, block=1)


@pytest.mark.parametrize("of", ["device", "stream"])
def test_what_was_captured_runs_each_time_the_graph_is_launched(
    of: str, device: Device, stream: Stream, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    buffer = pinned.allocate(4, stream=stream)
    count = np.from_dlpack(buffer).view(np.int32)
    count[:] = 0
    builder = (device if of == "device" else stream).create_graph_builder().begin_building()
    for _ in range(3):
        launch(builder, ONE, kernels.get_kernel("add_one"), buffer)
    graph = builder.end_building().complete()
    stream.sync()
    assert count[0] == 0
    graph.upload(stream)
    for _ in range(2):
        graph.launch(stream)
    stream.sync()
    assert count[0] == 6
    graph.close()
    builder.close()
    buffer.close()


def test_branches_join(device: Device, stream: Stream, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource) -> None:
    buffer = pinned.allocate(4, stream=stream)
    count = np.from_dlpack(buffer).view(np.int32)
    count[:] = 0
    left, right = device.create_graph_builder().begin_building().split(2)
    for branch in (left, right):
        launch(branch, ONE, kernels.get_kernel("add_one"), buffer)
    builder = GraphBuilder.join(left, right)
    launch(builder, ONE, kernels.get_kernel("add_one"), buffer)
    graph = builder.end_building().complete()
    graph.launch(stream)
    stream.sync()
    assert count[0] == 3
    graph.close()
    buffer.close()


def test_a_graph_calls_back_and_embeds_another(device: Device, stream: Stream) -> None:
    seen: list[str] = []
    inner = device.create_graph_builder().begin_building()
    inner.callback(lambda: seen.append("inner"))
    inner.end_building()
    builder = device.create_graph_builder().begin_building()
    builder.callback(lambda: seen.append("before"))
    builder.embed(inner)
    builder.callback(lambda: seen.append("after"))
    graph = builder.end_building().complete()
    graph.launch(stream)
    stream.sync()
    assert seen == ["before", "inner", "after"]
    graph.close()


def test_a_graph_has_memory_of_its_own(device: Device, stream: Stream, pinned: LegacyPinnedMemoryResource) -> None:
    host = pinned.allocate(1000, stream=stream)
    resource = GraphMemoryResource(device)
    builder = device.create_graph_builder().begin_building()
    buffer = resource.allocate(1000, stream=builder)
    buffer.fill(9, stream=builder)
    buffer.copy_to(host, stream=builder)
    buffer.close(stream=builder)
    graph = builder.end_building().complete()
    graph.launch(stream)
    stream.sync()
    assert (np.from_dlpack(host) == 9).all()
    graph.close()
    builder.close()
    resource.trim()
    host.close()


def test_a_graph_can_be_drawn(device: Device, kernels: ObjectCode, tmp_path: Path) -> None:
    builder = device.create_graph_builder().begin_building()
    builder.callback(lambda: None)
    builder.end_building().debug_dot_print(str(tmp_path / "graph.dot"))
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")
    builder.close()


def test_a_graph_can_be_made_by_hand(
    device: Device, stream: Stream, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    buffer = pinned.allocate(4, stream=stream)
    count = np.from_dlpack(buffer).view(np.int32)
    definition = GraphDefinition()
    cleared = definition.memset(int(buffer.handle), 0, 4)
    cleared.launch(ONE, kernels.get_kernel("add_one"), buffer)
    count[:] = 5
    graph = definition.instantiate()
    graph.launch(stream)
    stream.sync()
    assert count[0] == 1
    graph.close()
    buffer.close()

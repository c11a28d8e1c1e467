"""Device, Context, Stream and Event."""

import numpy as np
import pytest
from cuda.core import (
    LEGACY_DEFAULT_STREAM,
    PER_THREAD_DEFAULT_STREAM,
    Device,
    EventOptions,
    LaunchConfig,
    LegacyPinnedMemoryResource,
    ObjectCode,
    Stream,
    StreamOptions,
    launch,
)


def test_devices_differ_and_say_what_they_are(device: Device) -> None:
    devices = Device.get_all_devices()
    assert [one.device_id for one in devices] == [0, 1]
    assert len({one.uuid for one in devices}) == 2
    assert device.name == "Emulated CUDA device 0"
    assert tuple(device.compute_capability) == (9, 0)
    assert device.arch == "90"
    assert device.can_access_peer(1)


def test_every_property_has_an_answer(device: Device) -> None:
    names = [name for name in dir(device.properties) if not name.startswith("_")]
    assert len(names) > 100
    assert all(isinstance(getattr(device.properties, name), int) for name in names)
    assert device.properties.max_threads_per_block == 1024


def test_the_context_is_that_of_its_device(device: Device) -> None:
    other = Device(1)
    other.set_current()
    assert other.context.handle != device.context.handle
    before = device.set_current(device.context)
    assert before.handle == other.context.handle


def test_streams_have_their_options(device: Device) -> None:
    plain = device.create_stream()
    special = device.create_stream(options=StreamOptions(nonblocking=False, priority=-1))
    assert (plain.is_nonblocking, special.is_nonblocking) == (True, False)
    assert (plain.priority, special.priority) == (0, -1)
    assert special.device.device_id == 0
    same = Stream.from_handle(int(special.handle))
    assert same.handle == special.handle
    for stream in (plain, special):
        stream.close()
        assert stream.is_closed


@pytest.mark.parametrize("default", [LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM], ids=["legacy", "per thread"])
def test_default_streams_run_kernels(
    default: Stream, device: Device, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    buffer = pinned.allocate(4, stream=default)
    count = np.from_dlpack(buffer).view(np.int32)
    count[:] = 41
    launch(default, LaunchConfig(grid=1, block=1), kernels.get_kernel("add_one"), buffer)
    default.sync()
    assert count[0] == 42
    buffer.close()


def test_events_measure_and_order(device: Device, stream: Stream) -> None:
    first = stream.record(options=EventOptions(timing_enabled=True))
    other = device.create_stream()
    other.wait(first)
    last = other.record(options=EventOptions(timing_enabled=True))
    last.sync()
    assert first.is_done
    assert last.is_done
    assert last - first >= 0
    assert first.device.device_id == 0
    assert not stream.record().is_timing_enabled
    other.close()


def test_a_stream_waits_for_a_stream_of_another_device(
    device: Device, stream: Stream, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    buffer = pinned.allocate(4, stream=stream)
    count = np.from_dlpack(buffer).view(np.int32)
    count[:] = 0
    other = Device(1)
    other.set_current()
    streams = [stream, other.create_stream()]
    # Without its waits this would read and write one number from two streams at once.
    for turn in range(50):
        here, there = streams[turn % 2], streams[(turn + 1) % 2]
        here.wait(there)
        here.device.set_current()
        launch(here, LaunchConfig(grid=1, block=8), kernels.get_kernel("add_one"), buffer)
    stream.wait(streams[1])
    stream.sync()
    assert count[0] == 400
    streams[1].close()
    buffer.close()

"""The parts of cuda.core that do not work on the emulator: each raises, and the README gives the reason."""

import os
from collections.abc import Callable

import numpy as np
import pytest
from cuda.core import (
    ContextOptions,
    Device,
    GraphicsResource,
    LaunchConfig,
    Linker,
    ManagedMemoryResource,
    ObjectCode,
    Program,
    SMResourceOptions,
    Stream,
    checkpoint,
    launch,
    system,
)
from cuda.core.texture import MipmappedArrayOptions, OpaqueArrayOptions
from cuda.core.utils import StridedMemoryView
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib


def tensor_map(device: Device) -> object:
    """A view of managed memory as a tensor for the copy engine of a GPU."""
    buffer = ManagedMemoryResource().allocate(4096, stream=device.default_stream)
    try:
        return (
            StridedMemoryView.from_dlpack(buffer, stream_ptr=-1)
            .view(dtype=np.dtype(np.uint8))
            .as_tensor_map(box_dim=(64,))
        )
    finally:
        buffer.close()


REFUSED: dict[str, tuple[Callable[[Device], object], str]] = {
    "Device.sync": (lambda device: device.sync(), "SymbolNotFound"),
    "Device.pci_bus_id": (lambda device: device.pci_bus_id, "SymbolNotFound"),
    "Device.to_system_device": (lambda device: device.to_system_device(), "nvml"),
    "system": (lambda device: system.get_num_devices(), "nvml"),
    "SMResource": (lambda device: device.resources.sm.split(SMResourceOptions(count=2)), "NOT_SUPPORTED"),
    "WorkqueueResource": (lambda device: device.resources.workqueue, "NOT_SUPPORTED|requires CUDA driver"),
    "green Context": (
        lambda device: device.create_context(ContextOptions(resources=[device.resources.sm])),
        "NOT_SUPPORTED",
    ),
    "OpaqueArray": (
        lambda device: device.create_opaque_array(OpaqueArrayOptions((16, 16), np.float32, 1)),
        "NOT_SUPPORTED",
    ),
    "MipmappedArray": (
        lambda device: device.create_mipmapped_array(MipmappedArrayOptions((16, 16), np.float32, 1, 2)),
        "NOT_SUPPORTED",
    ),
    "TensorMapDescriptor": (lambda device: tensor_map(device), "NOT_SUPPORTED|not emulated"),
    "GraphicsResource": (lambda device: GraphicsResource.from_gl_buffer(1), "."),
    "checkpoint": (lambda device: checkpoint.Process(os.getpid()).state, "not supported"),
    "GraphCondition": (
        lambda device: device.create_graph_builder().begin_building().create_condition(default_value=1),
        "NOT_SUPPORTED",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_emulated_raises(name: str, device: Device) -> None:
    use, error = REFUSED[name]
    with pytest.raises(Exception, match=error):
        use(device)


def find(library: str) -> None:
    """Skips the test where NVIDIA's library is not installed."""
    try:
        load_nvidia_dynamic_lib(library)
    except DynamicLibNotFoundError:
        pytest.skip(f"{library} is not installed")


# Where NVRTC is newer than the driver that cuda.h makes the emulator claim to be.
OLD_DRIVER = pytest.mark.filterwarnings("ignore:The CUDA driver version is older:RuntimeWarning")


@OLD_DRIVER
@pytest.mark.parametrize("form", ["ptx", "cubin"])
def test_code_for_a_gpu_compiles_and_is_refused_when_it_is_loaded(form: str, device: Device) -> None:
    find("nvrtc")
    code = Program('extern "C" __global__ void k() {}', "c++").compile(form)
    with pytest.raises(Exception, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        code.get_kernel("k")


@OLD_DRIVER
def test_linked_code_is_refused_when_it_is_loaded(device: Device) -> None:
    find("nvrtc")
    find("nvJitLink")
    linked = Linker(Program('extern "C" __global__ void k() {}', "c++").compile("ptx")).link("cubin")
    with pytest.raises(Exception, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        linked.get_kernel("k")


@pytest.mark.parametrize("how", [{"cluster": 2}, {"is_cooperative": True}, {"programmatic_stream_serialization": True}])
def test_launches_that_need_a_gpu_raise(
    how: dict[str, object], device: Device, stream: Stream, kernels: ObjectCode
) -> None:
    buffer = device.allocate(4, stream=stream)
    with pytest.raises(Exception, match="not supported"):
        launch(stream, LaunchConfig(grid=2, block=1, **how), kernels.get_kernel("add_one"), buffer)
    buffer.close(stream=stream)

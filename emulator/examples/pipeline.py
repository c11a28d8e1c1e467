"""A program as anyone may have written it: chunks are scaled on one stream and come back on another."""

import numpy as np
from cuda.core import Device, Kernel, LaunchConfig, LegacyPinnedMemoryResource, launch


def scaled(chunks: list[np.ndarray], factor: float, kernel: Kernel, *, with_waits: bool = True) -> list[np.ndarray]:
    """Each chunk of float32 times ``factor``. ``with_waits=False`` is the mistake that everybody makes once."""
    device = Device()
    compute, download = device.create_stream(), device.create_stream()
    pinned = LegacyPinnedMemoryResource()
    buffers = []
    for chunk in chunks:
        host = pinned.allocate(chunk.nbytes, stream=compute)
        buffers.append((host, device.allocate(chunk.nbytes, stream=compute)))
        np.from_dlpack(host).view(np.float32)[:] = chunk
    compute.sync()
    for host, work in buffers:
        work.copy_from(host, stream=compute)
        launch(compute, LaunchConfig(grid=1, block=work.size // 4), kernel, work, np.float32(factor))
        if with_waits:
            download.wait(compute)
        work.copy_to(host, stream=download)
    compute.sync()
    download.sync()
    results = [np.from_dlpack(host).view(np.float32).copy() for host, _ in buffers]
    for host, work in buffers:
        work.close(stream=compute)
        host.close()
    download.close()
    compute.close()
    return results

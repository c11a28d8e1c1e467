"""A pool and its buffer in two processes: spawned children inherit the emulator through the environment."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing, os
import cuda_emulator

emulator = cuda_emulator.start(timeout_s=20)

import numpy as np
from cuda.core import Device, DeviceMemoryResource, DeviceMemoryResourceOptions, LegacyPinnedMemoryResource

device = Device(0)
device.set_current()
stream = device.create_stream()
host = LegacyPinnedMemoryResource().allocate(64, stream=stream)


def value_in(buffer):
    buffer.copy_to(host, stream=stream)
    stream.sync()
    (value,) = set(np.from_dlpack(host).tolist())
    return value


def child(resource, buffer, answers):
    answers.put(value_in(buffer))
    buffer.fill(9, stream=stream)
    stream.sync()
    buffer.close()


if __name__ == "__main__":
    os.environ.update(emulator.environment())
    resource = DeviceMemoryResource(device, DeviceMemoryResourceOptions(max_size=1 << 21, ipc_enabled=True))
    buffer = resource.allocate(64, stream=stream)
    buffer.fill(5, stream=stream)
    stream.sync()
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=child, args=(resource, buffer, answers))
    process.start()
    seen = answers.get(timeout=30)
    process.join(30)
    print(seen, process.exitcode, value_in(buffer))
    buffer.close(stream=stream)
"""


def test_two_processes_see_one_buffer(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["5", "0", "9"], done.stderr

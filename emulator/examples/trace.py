"""Records what two streams do, and writes a picture of it: open chrome.json in chrome://tracing or ui.perfetto.dev."""

import json
import sys
import tempfile
from pathlib import Path

import cuda_emulator
from cuda_emulator.trace import problems, read_trace, to_chrome

lines = Path(tempfile.mkdtemp()) / "trace.jsonl"
cuda_emulator.start(trace=lines, jitter_us=500)

from cuda.core import Device  # noqa: E402  (the emulator comes before everything that loads a driver)

device = Device(0)
device.set_current()
streams = [device.create_stream(), device.create_stream()]
for turn in range(10):
    here, there = streams[turn % 2], streams[(turn + 1) % 2]
    buffer = device.allocate(1 << 20, stream=here)
    buffer.fill(turn, stream=here)
    there.wait(here)
    buffer.close(stream=there)
for stream in streams:
    stream.sync()

trace = read_trace(lines)
assert not problems(trace)
target = Path(sys.argv[1] if len(sys.argv) > 1 else "chrome.json")
target.write_text(json.dumps(to_chrome(trace)))
print(f"{len(trace.calls)} calls and {len(trace.operations)} operations are in {target}")

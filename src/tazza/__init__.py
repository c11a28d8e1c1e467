"""tazza: one Python object that holds a device, its stream, a memory limit and a random seed.

>>> import tazza as tz
>>> with tz.open("cpu", seed=7) as ctx:
...     x = ctx.random.standard_normal((2, 3), dtype="float32")
...     ctx.launch(lambda v: v.shape, x).result()
(2, 3)
"""

from tazza import errors as errors
from tazza._version import __version__ as __version__
from tazza.contexts.cpu import CPUContext as CPUContext
from tazza.contexts.cuda import CUDAContext as CUDAContext
from tazza.core.borrow import borrow as borrow
from tazza.core.budget import Budget as Budget
from tazza.core.charge import Charge as Charge
from tazza.core.context import Context as Context
from tazza.core.current import carry as carry
from tazza.core.current import context_of as context_of
from tazza.core.current import current as current
from tazza.core.current import use as use
from tazza.core.device import Device as Device
from tazza.core.device import device as device
from tazza.core.device import devices as devices
from tazza.core.event import Event as Event
from tazza.core.event import EventStatus as EventStatus
from tazza.core.event import HostEvent as HostEvent
from tazza.core.generator import Generator as Generator
from tazza.core.health import Health as Health
from tazza.core.hostmemory import PinnedMemory as PinnedMemory
from tazza.core.hostmemory import SharedMemory as SharedMemory
from tazza.core.hostmemory import SharedSpec as SharedSpec
from tazza.core.kernel import kernel as kernel
from tazza.core.memory import Memory as Memory
from tazza.core.opening import context as context
from tazza.core.opening import open as open
from tazza.core.progress import track as track
from tazza.core.registry import BackendStatus as BackendStatus
from tazza.core.registry import backends as backends
from tazza.core.registry import register_backend as register_backend
from tazza.core.shutdown import drain_at_exit as _drain_at_exit  # noqa: F401  registers itself
from tazza.core.spec import Spec as Spec
from tazza.core.states import State as State
from tazza.core.stream import Stream as Stream
from tazza.core.task import Task as Task
from tazza.core.task import wait as wait
from tazza.core.trace import trace as trace
from tazza.errors import OutOfMemoryError as OutOfMemoryError
from tazza.hot import Buffer as Buffer
from tazza.memory.stats import MemoryStats as MemoryStats
from tazza.util.threads import limit_threads as limit_threads

__all__ = [
    "BackendStatus",
    "Budget",
    "Buffer",
    "CPUContext",
    "CUDAContext",
    "Charge",
    "Context",
    "Device",
    "Event",
    "EventStatus",
    "Generator",
    "Health",
    "HostEvent",
    "Memory",
    "MemoryStats",
    "OutOfMemoryError",
    "PinnedMemory",
    "SharedMemory",
    "SharedSpec",
    "Spec",
    "State",
    "Stream",
    "Task",
    "__version__",
    "backends",
    "borrow",
    "carry",
    "context",
    "context_of",
    "current",
    "device",
    "devices",
    "errors",
    "kernel",
    "limit_threads",
    "open",
    "register_backend",
    "trace",
    "track",
    "use",
    "wait",
]

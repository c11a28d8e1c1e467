"""A front end that computes: stands for NVIDIA's on emulated devices, where that cannot run.

It has the calls that tazza makes, with their arguments as the real one has them (tests/cudnn looks at those). It keeps
a record of them, and really does a graph's work, of float32, by kernels on the stream that the handle is bound to when
the call is made. What lies between two nodes is in the workspace. A plan's bytes are in the form of the real ones, with
the graph where cuDNN has its own.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import cuda_emulator
from cuda.bindings import driver

from tazza.dnn.cudnn import CudnnPlan, DeviceDescription
from tazza.dnn.cudnn.child import read_ubjson
from tazza.dnn.cudnn.graphs import Graph, graph_of
from tazza.dnn.library import Operation
from tests.cuda.front_end_kernels import SOURCE
from tests.unit.cudnn_fake.cudnn.ubjson import encoded

__all__ = ["Call", "calls", "failures", "install", "planned"]

emulated_library = "cudnn"
__version__ = "1.2.3"
VERSION = 90000
DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}


class cudnnGraphNotSupportedError(Exception):
    """As in the real one."""


class Call(NamedTuple):
    """One call: its name, the handle with the stream that it was bound to, addresses, workspace, thread, context."""

    name: str
    handle: int
    stream: int
    addresses: dict[int, int]
    workspace: int
    thread: int
    context: int


calls: list[Call] = []
failures: list[Exception] = []
"""What the next calls raise before they do anything."""
alive: list[int] = [0]
"""How many graphs there are that were not destroyed."""


def install() -> None:
    """Be what ``import cudnn`` gives."""
    sys.modules["cudnn"] = sys.modules[__name__]


def backend_version() -> int:
    """Of libcudnn."""
    return VERSION


class pygraph:
    """A graph that is loaded and executed."""

    def __init__(self, *, handle: int | None = None) -> None:
        self._graph: Graph = {}
        alive[0] += 1

    def __del__(self, alive: list[int] = alive) -> None:
        alive[0] -= 1

    def deserialize(self, handle_: int, pyobj: Sequence[int]) -> None:
        """Read a plan; tries nothing."""
        _record("deserialize", handle_, {}, 0)
        if isinstance(pyobj, bytes | str):
            raise TypeError("deserialize(): incompatible function arguments")
        self._graph = json.loads(read_ubjson(bytes(pyobj))["cudnn_backend_data"])["graph"]

    def get_workspace_size(self) -> int:
        """Bytes of all that lies between nodes."""
        return sum(4 * math.prod(shape) for shape in _between(self._graph).values())

    def execute(
        self,
        tensor_to_device_buffer: dict[int, int],
        workspace: int,
        handle: int | None = None,
        override_uids: None = None,
        override_shapes: None = None,
        override_strides: None = None,
    ) -> None:
        """Enqueue every node."""
        assert handle is not None
        stream = _record("execute", handle, tensor_to_device_buffer, workspace)
        graph, places = self._graph, {}
        for part in ("tensors", "outputs"):
            for name, one in graph[part].items():
                if one["uid"] not in tensor_to_device_buffer:
                    raise ValueError(f"Uid {one['uid']} not found in variant pack.")
                places[name] = _Place(tensor_to_device_buffer[one["uid"]], one["shape"], one["strides"])
        for name, shape in _between(graph).items():
            places[name] = _Place(workspace, shape, _dense(shape))
            workspace += 4 * math.prod(shape)
        for node in graph["nodes"]:
            _do(stream, node, places)


def planned(operation: Operation, device: DeviceDescription, version: int = VERSION, **changed: Any) -> CudnnPlan:
    """A plan of an operation of float32, in bytes that only this front end loads; `changed` are parts of these."""
    graph = graph_of(operation)
    profile = {"deviceVer": device.sm_version * 10, "multiProcessorCount": device.multiprocessors}
    inner = {"cudnnVersion": version, "GPUProfile": profile | {"deviceName": device.name}, "graph": graph}
    arrays = [*graph["tensors"].values(), *graph["outputs"].values()]
    outer = {
        "cudnn_backend_data": json.dumps(inner),
        "cudnn_frontend_version": 10203,
        "fe_workspace_size": 0,
        "tensors": {
            str(one["uid"]): {"data_type": DTYPES[one["dtype"]], "dim": one["shape"], "stride": one["strides"]}
            for one in arrays
        },
        "variant_pack_uids": [one["uid"] for one in arrays],
    }
    nbytes = sum(4 * math.prod(shape) for shape in _between(graph).values())
    return CudnnPlan(operation, device, "eng0", nbytes, encoded(outer | changed), version, 1)


# Shapes --------------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    address: int
    shape: list[int]
    strides: list[int]


def _dense(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _between(graph: Graph) -> dict[str, list[int]]:
    """The shapes of what a node makes for another; each has that of the result, or of the gradient that comes in."""
    found = {}
    for node in graph["nodes"]:
        for made in node["made"]:
            if made not in graph["outputs"] and node["call"] != "sdpa":
                like = graph["tensors"]["dy"] if made == "through" else next(iter(graph["outputs"].values()))
                found[made] = like["shape"]
    return found


# Work ----------------------------------------------------------------------------------------------------------------


class _Shapes(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_longlong * 4 * 6),
        ("s", ctypes.c_longlong * 4 * 6),
        ("more", ctypes.c_longlong * 8),
    )


def _shapes(places: Sequence[_Place], more: Sequence[int] = ()) -> _Shapes:
    """Arrays of fewer than four axes have their last ones; steps of an axis of one element are 0."""
    made = _Shapes()
    for number, (_, shape, strides) in enumerate(places):
        first = 4 - len(shape)
        made.n[number][:] = (*(1 for _ in range(first)), *shape)
        steps = (0 if extent == 1 else step for extent, step in zip(shape, strides, strict=True))
        made.s[number][:] = (*(0 for _ in range(first)), *steps)
    made.more[: len(more)] = tuple(more)
    return made


def _do(stream: int, node: dict[str, Any], places: dict[str, _Place]) -> None:
    """Enqueue one node."""
    name, options = node["call"], node["options"]
    given = [places[one] for one in node["inputs"].values()]
    made = [places.get(one, _Place(0, [1], [1])) for one in node["made"]]
    window = [*options.get("padding", ()), *options.get("stride", ()), *options.get("dilation", ())]
    count = math.prod(made[0].shape)
    if name == "sdpa":
        wants = [int(options["use_causal_mask"]), int(made[1].address != 0)]
        count = math.prod(given[0].shape[:3])
        _launch(stream, name, count, [*given, *made], options["attn_scale"], _shapes([*given, *made], wants))
    elif name == "sdpa_backward":
        q, k, v, y, dy, stats = given
        shapes = _shapes([q, k, v, y, stats], [int(options["use_causal_mask"])])
        _launch(stream, name, 1, [q, k, v, y, dy, stats, *made], options["attn_scale"], shapes)
    elif name in ("conv_dgrad", "conv_wgrad"):
        mode = int(name == "conv_wgrad")
        _launch(stream, "conv_backward", 1, [mode, *given, *made], _shapes([*given, *made], window))
    elif name in ("bias", "relu", "relu_backward"):
        mode = ("bias", "relu", "relu_backward").index(name)
        both = given if len(given) == 2 else given * 2
        _launch(stream, "pointwise", count, [mode, *both, *made], _shapes([*both, *made]))
    else:
        _launch(stream, name, count, [*given, *made], _shapes([*given, *made], window))


def _launch(stream: int, name: str, count: int, first: Sequence[Any], *rest: Any) -> None:
    values: list[Any] = []
    for one in (*first, *rest):
        if isinstance(one, _Place):
            values.append(ctypes.c_void_p(one.address))
        elif isinstance(one, ctypes.Structure):
            values.append(one)
        else:
            values.append(ctypes.c_float(one) if isinstance(one, float) else ctypes.c_longlong(one))
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    blocks = max(1, -(-count // 32))
    _check(
        *driver.cuLaunchKernel(
            _kernel(name), blocks, 1, 1, 32, 1, 1, 0, driver.CUstream(stream), ctypes.addressof(pointers), 0
        )
    )


_library: list[Any] = []
"""The kernels, for all devices, once they are loaded."""


def _kernel(name: str) -> Any:
    if not _library:
        image = cuda_emulator.compile_kernels(SOURCE)
        _library.append(_check(*driver.cuLibraryLoadData(image, [], [], 0, [], [], 0)))
    return driver.CUfunction(int(_check(*driver.cuLibraryGetKernel(_library[0], name.encode()))))


def _check(status: Any, *answer: Any) -> Any:
    if int(status):
        raise RuntimeError(f"[cudnn_frontend] Error: CUDNN_STATUS_EXECUTION_FAILED at\n\n{status.name}")
    return answer[0] if answer else None


def _record(name: str, handle: int, addresses: dict[int, int], workspace: int) -> int:
    """Keep what was asked for; returns the stream that the handle is bound to."""
    stream = ctypes.c_void_p()
    status = ctypes.CDLL("libcudnn.so.9").cudnnGetStream(ctypes.c_void_p(handle), ctypes.byref(stream))
    if status:
        raise RuntimeError(f"cudnnGetStream failed with {status}")
    context = int(_check(*driver.cuCtxGetCurrent()))
    calls.append(Call(name, handle, stream.value or 0, dict(addresses), workspace, threading.get_ident(), context))
    if failures:
        raise failures.pop(0)
    return stream.value or 0

"""The planner's process: cuDNN's front end behind JSON lines; it imports nothing of tazza and ends with its parent.

Each line of standard input is a request, answered by one line; an empty one is the end, as the input's own end is.
What the libraries print goes to standard error.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["main"]

_DRIVER = "libcuda.so.1"
_NO_DEVICE = 100
_DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}
_CHECKS = ("Graph", "Ops", "Cnn", "Adv")

# Of cudnn_graph.h.
_PLAN, _DEVICE = 5, 38
_PLAN_WORKSPACE, _PLAN_JSON, _PLAN_DEVICE, _DEVICE_JSON = 402, 405, 407, 2702
_INT64, _DESCRIPTOR, _CHAR = 3, 15, 24


class Refused(Exception):
    """A request that cannot be granted; `kind` says why, for the parent to choose an error by."""

    def __init__(self, kind: str, message: str, symbol: str = "") -> None:
        super().__init__(message)
        self.kind, self.symbol = kind, symbol


class Planner:
    """The libraries, once they are loaded."""

    def __init__(self) -> None:
        self.library: Any = None
        self.front: Any = None
        self.driver = ""

    def start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load the driver or its stand-in, libcudnn, and the front end; says what was found."""
        self.driver = self.driver or _load_driver(request.get("stub"))
        if not self.driver:
            return {"need": _DRIVER}
        try:
            self.library = library = ctypes.CDLL(request["cudnn"], ctypes.RTLD_GLOBAL)
            import cudnn
        except (ImportError, OSError) as error:
            raise Refused("unavailable", f"{type(error).__name__}: {error}") from error
        self.front = cudnn
        library.cudnnGetVersion.restype = library.cudnnGetMaxDeviceVersion.restype = ctypes.c_size_t
        library.cudnnGetErrorString.restype = ctypes.c_char_p
        checks = {part: getattr(library, f"cudnn{part}VersionCheck", None) for part in _CHECKS}
        return {
            "driver": self.driver,
            "version": library.cudnnGetVersion(),
            "newest": library.cudnnGetMaxDeviceVersion(),
            "front": cudnn.__version__,
            "front_version": cudnn.backend_version(),
            "checks": {part: check() for part, check in checks.items() if check is not None},
            "files": mapped_files(),
        }

    def plan(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build the first plan of the heuristics' list that works and keeps to the limit."""
        front, limit = self.front, request["max_workspace"]
        try:
            device = front.create_device_properties(request["device"])
            graph = self._draw(request["graph"], device, request["sm_version"])
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([front.heur_mode.A, front.heur_mode.FALLBACK])
            if request["deterministic"]:
                graph.deselect_numeric_notes([front.numerical_note.NONDETERMINISTIC])
            if limit is not None:
                graph.deselect_workspace_greater_than(limit)
        except front.cudnnGraphNotSupportedError as error:
            raise Refused("unsupported", _first_line(error)) from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise Refused("failed", _first_line(error)) from error
        count = graph.get_execution_plan_count()
        for index in range(count):
            try:
                graph.build_plan_at_index(index)
                nbytes = graph.get_workspace_size_plan_at_index(index)
            except (front.cudnnGraphNotSupportedError, RuntimeError):  # left out above, or it cannot be built: the next
                continue
            if limit is None or nbytes <= limit:
                return {
                    "algorithm": graph.get_plan_name_at_index(index),
                    "workspace": nbytes,
                    "candidates": count,
                    "index": index,
                    "serialized": base64.b64encode(bytes(graph.serialize())).decode("ascii"),
                    "files": mapped_files(),
                }
        raise Refused("unsupported", f"none of its {count} plans can be built within what was asked for")

    def _draw(self, drawn: dict[str, Any], device: Any, sm_version: int) -> Any:
        types = {name: getattr(self.front.data_type, theirs) for name, theirs in _DTYPES.items()}
        graph = self.front.pygraph(
            name="plan",
            io_data_type=types[drawn["io"]],
            intermediate_data_type=types["float32"],
            compute_data_type=types["float32"],
            device_property=device,
            sm_version=sm_version,
        )
        tensors = {
            name: graph.tensor(
                name=name, dim=one["shape"], stride=one["strides"], data_type=types[one["dtype"]], uid=one["uid"]
            )
            for name, one in drawn["tensors"].items()
        }
        for node in drawn["nodes"]:
            inputs = {parameter: tensors[name] for parameter, name in node["inputs"].items()}
            made = getattr(graph, node["call"])(**inputs, **node["options"])
            tensors |= zip(node["made"], made if isinstance(made, list | tuple) else [made], strict=True)
        for name, one in drawn["outputs"].items():
            tensor = tensors[name].set_output(True).set_data_type(types[one["dtype"]])
            tensor.set_dim(one["shape"]).set_stride(one["strides"]).set_uid(one["uid"])
        return graph

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load a serialized plan for a described device; front end 1.23 does that with a handle only, so by hand."""
        text, written, around = plan_json(base64.b64decode(request["serialized"]))
        names = "multiProcessorCount", "deviceVer", "deviceName"
        made_for = {name: written.get("GPUProfile", {}).get(name) for name in names}
        device, plan = ctypes.c_void_p(), ctypes.c_void_p()
        describe = request["device"].encode()
        try:
            self._call("CreateDescriptor", _DEVICE, ctypes.byref(device))
            self._call("SetAttribute", device, _DEVICE_JSON, _CHAR, ctypes.c_int64(len(describe)), describe)
            self._call("Finalize", device)
            self._call("CreateDescriptor", _PLAN, ctypes.byref(plan))
            self._call("SetAttribute", plan, _PLAN_DEVICE, _DESCRIPTOR, ctypes.c_int64(1), ctypes.byref(device))
            self._call("SetAttribute", plan, _PLAN_JSON, _CHAR, ctypes.c_int64(len(text)), text)
            self._call("Finalize", plan, made_for=made_for)
            nbytes, count = ctypes.c_int64(), ctypes.c_int64()
            out = ctypes.byref(count), ctypes.byref(nbytes)
            self._call("GetAttribute", plan, _PLAN_WORKSPACE, _INT64, ctypes.c_int64(1), *out)
        finally:
            for made in (plan, device):
                if made.value:
                    self.library.cudnnBackendDestroyDescriptor(made)
        return {"workspace": nbytes.value + around}

    def _call(self, name: str, *arguments: Any, made_for: dict[str, Any] | None = None) -> None:
        status = getattr(self.library, f"cudnnBackend{name}")(*arguments)
        if status:
            symbol = self.library.cudnnGetErrorString(status).decode()
            detail = ctypes.create_string_buffer(1000)
            self.library.cudnnGetLastErrorString(detail, ctypes.c_size_t(len(detail)))
            said = detail.value.decode("utf-8", "replace")
            kind = "foreign" if symbol.endswith("ARCH_MISMATCH") and made_for is not None else "failed"
            raise Refused(kind, json.dumps(made_for) if kind == "foreign" else said or symbol, symbol)


def _load_driver(stub: str | None) -> str:
    """Load the real driver library, else its stand-in, for the libraries that are linked with it."""
    try:
        ctypes.CDLL(_DRIVER, ctypes.RTLD_GLOBAL)
        return "real"
    except OSError:  # none is installed: the parent is asked for the stand-in
        if stub is None:
            return ""
    try:
        library = ctypes.CDLL(stub, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise Refused("unavailable", f"the stand-in for {_DRIVER} cannot be loaded: {error}") from error
    if library.cuInit(0) != _NO_DEVICE:
        raise Refused("unavailable", f"{stub} is not the stand-in for {_DRIVER}")
    return "stand-in"


def mapped_files() -> list[str]:
    """The parts of cuDNN in this process."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "/libcudnn" in line}
    return sorted(paths)


def plan_json(serialized: bytes) -> tuple[bytes, dict[str, Any], int]:
    """Read what the front end wrote: cuDNN's own plan as it is, the same as values, and the workspace beyond it."""
    try:
        outer = read_ubjson(serialized)
        text, around = outer["cudnn_backend_data"], int(outer.get("fe_workspace_size", 0))
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("GPUProfile", {}), dict):
            raise ValueError("the plan in it is no JSON object")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused("damaged", f"{type(error).__name__}: {error}") from error
    return text.encode(), found, around


def read_ubjson(data: bytes) -> Any:
    """Read Universal Binary JSON, https://ubjson.org, of draft 12 without optimised containers."""
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        if count < 0 or position + count > len(data):
            raise ValueError(f"cut off at byte {len(data)}")
        position += count
        return data[position - count : position]

    def integer(marker: bytes) -> int:
        if marker not in _INTEGERS:
            raise ValueError(f"no value starts with {marker!r}, before byte {position}")
        size, signed = _INTEGERS[marker]
        return int.from_bytes(take(size), "big", signed=signed)

    def text() -> str:
        return take(integer(take(1))).decode("utf-8")

    def until(end: bytes) -> Iterator[bytes]:
        while (marker := take(1)) != end:
            yield marker

    def value(marker: bytes) -> Any:
        if marker == b"{":
            found = {}
            for length in until(b"}"):
                key = take(integer(length)).decode("utf-8")
                found[key] = value(take(1))
            return found
        if marker == b"[":
            return [value(one) for one in until(b"]")]
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker in b"SH":
            return text()
        if marker == b"C":
            return take(1).decode("ascii")
        if marker in b"dD":
            return take(4 if marker == b"d" else 8)  # a float, which nobody here reads
        return integer(marker)

    return value(take(1))


_INTEGERS = {b"i": (1, True), b"U": (1, False), b"I": (2, True), b"l": (4, True), b"L": (8, True)}
_CONSTANTS = {b"Z": None, b"T": True, b"F": False}


def _first_line(error: BaseException) -> str:
    """What a front end says in a line; cuDNN's own report of each engine follows it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip("_ ")]
    return (lines[0].rstrip("_ ").removesuffix(" for") if lines else type(error).__name__)[:300]


def answer(planner: Planner, line: bytes) -> dict[str, Any]:
    """Do what a line asks for."""
    request = json.loads(line)
    # Whatever hangs in a library, with the parent gone or not: the alarm's default is the end of this process.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    kinds: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "start": planner.start,
        "plan": planner.plan,
        "check": planner.check,
    }
    try:
        return kinds[request["do"]](request)
    except Refused as error:
        return {"error": error.kind, "message": str(error), "symbol": error.symbol}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def serve(requests: Iterable[bytes], write: Callable[[memoryview], int]) -> None:
    """Answer line by line until there are no more, or an empty one; `write` may take a part of what it is given."""
    planner = Planner()
    for line in requests:
        if not line.strip():
            return
        pending = memoryview(json.dumps(answer(planner, line)).encode() + b"\n")
        while pending:
            pending = pending[write(pending) :]


def main() -> None:
    """Answer what comes on standard input."""
    answers = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not be taken for an answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    serve(sys.stdin.buffer, lambda pending: os.write(answers, pending))


if __name__ == "__main__":
    main()

"""CudnnPlanner: plans of the real cuDNN for a device that is described and not there."""

from __future__ import annotations

import atexit
import base64
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, final

from tazza.core.completion import timeout_or_default
from tazza.dnn.cudnn.coherence import HINT, check_loaded, examine_installation
from tazza.dnn.cudnn.devices import DeviceDescription
from tazza.dnn.cudnn.graphs import graph_of
from tazza.dnn.cudnn.process import PlannerProcess
from tazza.dnn.cudnn.stub import build_stub, default_cache
from tazza.dnn.library import Operation
from tazza.errors import (
    ArgumentError,
    BackendError,
    BackendUnavailableError,
    ClosedError,
    ForkedError,
    LeakWarning,
    TazzaError,
    UnsupportedError,
    WaitTimeoutError,
    WrongDeviceError,
)
from tazza.util.liveset import LiveSet
from tazza.util.report import report
from tazza.util.text import format_nbytes

__all__ = ["CudnnPlan", "CudnnPlanner", "PlannerInfo"]

_COMPILER = 600.0  # seconds that no compiler needs for one small file


@final
@dataclass(frozen=True, slots=True, repr=False)
class CudnnPlan:
    """How cuDNN would do an operation on a device: planned, not executed.

    Nothing shows that a real device needs the same workspace, or that the plan runs there at all. Where there is one,
    `tazza.dnn.CudnnWrapper.load` makes of it what executes; a plan can be pickled.

    Attributes:
        operation: what it does.
        device: what it was made for.
        algorithm: cuDNN's name of the engine and of the knobs' values, for example ``"eng4_k24=3"``.
        workspace_bytes: scratch memory that an execution needs.
        serialized: for ``pygraph.deserialize`` of the front end, on such a device. Two plans of one operation may
            differ in it, so it must never be hashed or compared.
        version: of cuDNN, as ``cudnnGetVersion`` gives it. Another version refuses the serialized plan.
        candidates: how many plans the heuristics named; this one is the first that could be built and was allowed.
        executed: always False.
    """

    operation: Operation
    device: DeviceDescription
    algorithm: str
    workspace_bytes: int
    serialized: bytes = field(compare=False)
    version: int
    candidates: int
    executed: bool = field(default=False, init=False)

    def __repr__(self) -> str:
        return (
            f"<CudnnPlan {self.operation.name} for {self.device.name}: {self.algorithm}, workspace "
            f"{format_nbytes(self.workspace_bytes)}, cuDNN {self.version}; planned, not executed>"
        )


@final
@dataclass(frozen=True, slots=True)
class PlannerInfo:
    """What plans: versions of cuDNN (92800 is 9.28.0) and of its front end, and what stands for the driver.

    Attributes:
        version: as ``cudnnGetVersion`` gives it.
        front_end: as the front end gives it.
        driver: ``"real"`` where libcuda.so.1 is installed, else ``"stand-in"``.
        newest: the highest compute capability that this cuDNN knows, times 100: 1210 is 12.1.
    """

    version: int
    front_end: str
    driver: str
    newest: int


@final
class CudnnPlanner:
    """Asks the real cuDNN, in a process of its own, how it would do operations on a described device.

    Needs no GPU and no driver, but the wheels of the extra ``cudnn-plan``. Their versions and files are compared before
    the first plan. The process starts with the first question and serves one at a time; other threads wait for their
    turn. It is ended, and started again for the next question, after a crash or a timeout.

    Args:
        timeout: seconds that one question may take, the start included; None is ``TAZZA_WAIT_TIMEOUT``.
        cache: folder that keeps the stand-in for the driver's library; default is the user's cache folder.

    Raises:
        BackendUnavailableError: the wheels are not installed or do not fit together; says which.

    >>> from tazza.dnn.cudnn import A100, CudnnPlanner, describe
    >>> with CudnnPlanner() as planner:
    ...     x = describe.channels_last("float16", 16, 128, 64, 64)
    ...     w = describe.channels_last("float16", 256, 128, 3, 3)
    ...     planner.plan(describe.conv2d(x, w, padding=1), A100)
    <CudnnPlan conv2d for NVIDIA A100-SXM4-80GB: eng..., workspace 0 B, cuDNN ...; planned, not executed>
    """

    def __init__(self, *, timeout: float | None = None, cache: str | os.PathLike[str] | None = None) -> None:
        timeout_or_default(timeout)
        self._installation = examine_installation()
        self._timeout = timeout
        self._cache = default_cache() if cache is None else Path(cache)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._process: PlannerProcess | None = None
        self._info: PlannerInfo | None = None
        self._closed = False
        _live.add(self)

    def plan(
        self,
        operation: Operation,
        device: DeviceDescription,
        *,
        max_workspace: int | None = None,
        deterministic: bool = False,
        timeout: float | None = None,
    ) -> CudnnPlan:
        """Return the first plan of cuDNN's heuristics that can be built for the device.

        Args:
            operation: of `tazza.dnn.cudnn.describe`, or made by hand after its table.
            device: what to plan for.
            max_workspace: bytes that the plan may need; None: any.
            deterministic: only plans whose results are equal bits each time, by cuDNN's word.
            timeout: seconds; None is the planner's.

        Raises:
            ArgumentError: the operation, the device or an option makes no sense.
            UnsupportedError: cuDNN has no plan for it there, or none within `max_workspace`.
            WaitTimeoutError: no answer in time; the process was ended.
            BackendError: cuDNN failed, or its process crashed.
        """
        graph = graph_of(operation)
        self._check_device(device)
        if max_workspace is not None and (type(max_workspace) is not int or not 0 <= max_workspace < 2**63):
            raise ArgumentError.of("max_workspace", max_workspace, "bytes, 0 or more, or None")
        request = {
            "graph": graph,
            "device": device.to_json(),
            "sm_version": device.sm_version,
            "max_workspace": max_workspace,
            "deterministic": bool(deterministic),
        }
        what = f"{operation.name} for {device.name}" + (
            "" if max_workspace is None else f" within {max_workspace} bytes of workspace"
        )
        said, info = self._ask("plan", request, timeout, device, what)
        check_loaded(self._installation, said)
        serialized = base64.b64decode(said["serialized"])
        return CudnnPlan(
            operation, device, said["algorithm"], said["workspace"], serialized, info.version, said["candidates"]
        )

    def check(self, plan: CudnnPlan | bytes, device: DeviceDescription, *, timeout: float | None = None) -> int:
        """Let cuDNN load a serialized plan for a device; returns the bytes of workspace that it then names.

        Raises:
            WrongDeviceError: it was made for another device; the message names both.
            ArgumentError: the bytes are no serialized plan.
            BackendError: cuDNN refuses it for another reason, for example another version; carries code and reason.
            WaitTimeoutError: no answer in time; the process was ended.
        """
        serialized = plan.serialized if isinstance(plan, CudnnPlan) else plan
        if not isinstance(serialized, bytes):
            raise ArgumentError.of("plan", plan, "a CudnnPlan or the bytes of its `serialized`")
        self._check_device(device)
        request = {"device": device.to_json(), "serialized": base64.b64encode(serialized).decode("ascii")}
        said, _ = self._ask("check", request, timeout, device, f"a serialized plan for {device.name}")
        nbytes: int = said["workspace"]
        return nbytes

    def info(self, timeout: float | None = None) -> PlannerInfo:
        """What plans; starts the process if it does not run."""
        deadline = self._begin(timeout)
        try:
            self._started(deadline)
            assert self._info is not None
            return self._info
        finally:
            self._lock.release()

    def close(self, timeout: float | None = None) -> None:
        """End the process; later calls raise `ClosedError`. Waits for a question that another thread still asks.

        Raises:
            WaitTimeoutError: that question still runs; nothing was closed.
        """
        if self._pid != os.getpid():  # the process is the parent's
            return
        self._take(time.monotonic() + timeout_or_default(self._timeout if timeout is None else timeout))
        try:
            self._closed = True
            self._end()
        finally:
            self._lock.release()

    def _check_device(self, device: DeviceDescription) -> None:
        if not isinstance(device, DeviceDescription):
            raise ArgumentError.of("device", device, "a DeviceDescription, for example tazza.dnn.cudnn.H100")

    def _ask(
        self, do: str, request: dict[str, Any], timeout: float | None, device: DeviceDescription, what: str
    ) -> tuple[dict[str, Any], PlannerInfo]:
        """Ask the process under the lock; returns what it said, and who said it."""
        deadline = self._begin(timeout)
        try:
            process = self._started(deadline)
            info = self._info
            assert info is not None
            if device.sm_version * 10 > info.newest:
                message = f"{device.name} is newer than cuDNN {info.version}, which knows {info.newest / 100:.1f}"
                raise UnsupportedError(message)
            said = self._exchange(process, do, request, deadline)
        finally:
            self._lock.release()
        if "error" in said:
            raise _error(said, do, device, what)
        return said, info

    def _begin(self, timeout: float | None) -> float:
        """Take the lock; returns the deadline."""
        if self._pid != os.getpid():
            raise ForkedError("this CudnnPlanner was made before the process was forked; make a new one")
        deadline = time.monotonic() + timeout_or_default(self._timeout if timeout is None else timeout)
        self._take(deadline)
        if self._closed:
            self._lock.release()
            raise ClosedError("this CudnnPlanner was closed; make a new one")
        return deadline

    def _take(self, deadline: float) -> None:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise WaitTimeoutError("another thread still asks cuDNN's planner; give a longer timeout=")

    def _started(self, deadline: float) -> PlannerProcess:
        """Return the process, with its libraries loaded and compared."""
        if self._process is not None:
            return self._process
        _end_dropped()
        self._process = process = PlannerProcess()
        try:
            request: dict[str, Any] = {"cudnn": str(self._installation.library)}
            said = self._exchange(process, "start", request, deadline)
            if "need" in said:
                rest = min(max(0.001, deadline - time.monotonic()), _COMPILER)
                request["stub"] = str(build_stub(self._cache, timeout=rest))
                said = self._exchange(process, "start", request, deadline)
            if "error" in said:
                raise BackendUnavailableError("cudnn", said["message"], HINT)
            check_loaded(self._installation, said)
            self._info = PlannerInfo(said["version"], said["front"], said["driver"], said["newest"])
        except BaseException:
            self._end()
            raise
        return process

    def _exchange(self, process: PlannerProcess, do: str, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        try:
            return process.ask(do, request, max(0.0, deadline - time.monotonic()))
        except BaseException:  # the process is gone, and the next question starts another
            self._process = None
            raise

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def __enter__(self) -> CudnnPlanner:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            _dropped.append((self._pid, self._process))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._process is None else f"process {self._process.pid}"
        return f"<CudnnPlanner of {self._installation.wheel} {self._installation.version}: {state}>"


_live: LiveSet[CudnnPlanner] = LiveSet()
_dropped: deque[tuple[int, PlannerProcess | None]] = deque()
"""Processes whose planner was dropped without being closed, for the next one to end."""


def _end_dropped() -> None:
    while _dropped:
        pid, process = _dropped.popleft()
        if process is not None and pid == os.getpid():
            report(f"a CudnnPlanner was dropped without close(); process {process.pid} is ended", LeakWarning)
            process.end()


def _end_at_exit() -> None:
    """Leave no process behind, though each would end by itself when its input does."""
    for planner in _live.now():
        if planner._pid == os.getpid():
            planner._end()
    _end_dropped()


atexit.register(_end_at_exit)


def _wrong_device(said: dict[str, Any], do: str, device: DeviceDescription, what: str) -> TazzaError:
    made_for = json.loads(said["message"])
    return WrongDeviceError(
        f"the plan was made for {made_for['deviceName']} (compute capability {_capability(made_for['deviceVer'])}, "
        f"{made_for['multiProcessorCount']} multiprocessors), not for {device.name} "
        f"({_capability(device.sm_version * 10)}, {device.multiprocessors}); plan it again for this one "
        f"[{said['symbol']}]"
    )


def _capability(number: object) -> str:
    return f"{number // 100}.{number % 100 // 10}" if isinstance(number, int) else str(number)


def _damaged(said: dict[str, Any], do: str, device: DeviceDescription, what: str) -> TazzaError:
    return ArgumentError(f"plan: these bytes are no serialized plan of cuDNN: {said['message']}")


def _unsupported(said: dict[str, Any], do: str, device: DeviceDescription, what: str) -> TazzaError:
    return UnsupportedError(f"cuDNN has no plan of {what}: {said['message']}")


def _failed(said: dict[str, Any], do: str, device: DeviceDescription, what: str) -> TazzaError:
    return BackendError(f"{what}: {said['message']}", backend="cudnn", call=do, symbol=said.get("symbol", ""))


_ERRORS: dict[str, Callable[[dict[str, Any], str, DeviceDescription, str], TazzaError]] = {
    "foreign": _wrong_device,
    "damaged": _damaged,
    "unsupported": _unsupported,
}


def _error(said: dict[str, Any], do: str, device: DeviceDescription, what: str) -> TazzaError:
    return _ERRORS.get(said["error"], _failed)(said, do, device, what)

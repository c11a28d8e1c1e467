"""A front end that plans nothing: what the planner's process calls, so that it is tested where cuDNN is not.

The described device's name says how it behaves; see `pygraph.validate`.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from .ubjson import encoded

__version__ = "0.0"
CANDIDATES = [("eng1_k2=1", 4096), ("eng2_k2=0", None), ("eng3", 64), ("eng4", 0)]
"""Names with the workspace; None: cannot be built."""


class cudnnGraphNotSupportedError(Exception):
    """As in the real one."""


class data_type:
    """As in the real one."""

    HALF, BFLOAT16, FLOAT = "HALF", "BFLOAT16", "FLOAT"


class heur_mode:
    """As in the real one."""

    A, FALLBACK = "A", "FALLBACK"


class numerical_note:
    """As in the real one."""

    NONDETERMINISTIC = "NONDETERMINISTIC"


def backend_version() -> int:
    """Of the libcudnn that the front end found."""
    return int(os.environ.get("FAKE_FRONT_VERSION", "92800"))


def create_device_properties(text: str) -> dict[str, Any]:
    """Read the description."""
    found: dict[str, Any] = json.loads(text)
    if found["deviceName"] == "unknown":
        raise RuntimeError("CUDNN_STATUS_BAD_PARAM\nlong report")
    return found


class Tensor:
    """Keeps what was said about it."""

    def __init__(self, **said: Any) -> None:
        self.said = said

    def _set(self, value: Any) -> Tensor:
        return self

    def set_uid(self, value: int) -> Tensor:
        self.said["uid"] = value
        return self

    set_output = set_data_type = set_dim = set_stride = _set


class pygraph:
    """Records the calls, and writes them into the serialized plan."""

    def __init__(self, **said: Any) -> None:
        self.device: dict[str, Any] = said["device_property"]
        self.calls: list[str] = []
        self.tensors: list[Tensor] = []
        self.limit: int | None = None
        self.at = -1
        self.deterministic = False

    def tensor(self, **said: Any) -> Tensor:
        return self._kept(Tensor(**said))

    def _kept(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def __getattr__(self, name: str) -> Any:
        counts = {"sdpa": 2, "sdpa_backward": 3}

        def node(**given: Any) -> Any:
            self.calls.append(f"{name}({', '.join(sorted(given))})")
            made = [self._kept(Tensor()) for _ in range(counts.get(name, 1))]
            return made if name in counts else made[0]

        return node

    def validate(self) -> None:
        name = self.device["deviceName"]
        if name == "crash":
            os.abort()
        if name == "exit":
            print("the last words", flush=True)
            raise SystemExit(3)
        if name == "hang":
            signal.pause()
        if name == "unsupported":
            raise cudnnGraphNotSupportedError("____\nNo valid engine configs\nand more")
        print('{"error": "printed by a library"}', flush=True)

    def build_operation_graph(self) -> None:
        """Nothing."""

    def create_execution_plans(self, modes: list[str]) -> None:
        assert modes == [heur_mode.A, heur_mode.FALLBACK]

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        self.deterministic = notes == [numerical_note.NONDETERMINISTIC]

    def deselect_workspace_greater_than(self, limit: int) -> None:
        self.limit = limit

    def get_execution_plan_count(self) -> int:
        return len(CANDIDATES)

    def build_plan_at_index(self, index: int) -> None:
        nbytes = CANDIDATES[index][1]
        if nbytes is None or (self.deterministic and index == 0):
            raise RuntimeError("cannot be built")
        self.at = index

    def get_workspace_size_plan_at_index(self, index: int) -> int | None:
        return CANDIDATES[index][1]

    def get_plan_name_at_index(self, index: int) -> str:
        return CANDIDATES[index][0]

    def serialize(self) -> list[int]:
        names = "multiProcessorCount", "deviceVer", "deviceName"
        profile = {name: self.device[name] for name in names}
        plan = {"cudnnVersion": 92800, "GPUProfile": profile, "calls": self.calls}
        uids = [tensor.said["uid"] for tensor in self.tensors if "uid" in tensor.said]
        written = {"cudnn_backend_data": json.dumps(plan), "fe_workspace_size": 1000, "floats": [1.5]}
        return list(encoded(written | {"variant_pack_uids": uids}))

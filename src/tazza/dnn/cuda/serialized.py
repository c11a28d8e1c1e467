"""What a serialized plan of the front end says of itself: versions, device, arrays. Refuses what does not fit here.

Nothing is called: the bytes are read as the Universal Binary JSON that they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

from tazza.dnn.cudnn.child import Refused, plan_json, read_ubjson
from tazza.dnn.cudnn.graphs import graph_of
from tazza.dnn.cudnn.planner import CudnnPlan
from tazza.errors import ArgumentError, UnsupportedError, WrongDeviceError
from tazza.util.versions import numbers

__all__ = ["Written", "number_of", "written_in"]

_DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}


def number_of(version: tuple[int, int, int]) -> int:
    """A version of cuDNN or of its front end as these write it: 92800 is 9.28.0."""
    major, minor, patch = version
    return major * 10000 + minor * 100 + patch


@final
class Written(NamedTuple):
    """What the bytes say.

    Attributes:
        version: of cuDNN, for example 92800.
        front_end: version of the front end, for example 12300.
        device: cuDNN's figures of the device.
        numbers: of the operation's arrays, from 1, those that the plan uses.
    """

    version: int
    front_end: int
    device: Mapping[str, Any]
    numbers: tuple[int, ...]

    def check_version(self, version: int) -> None:
        """Refuse a plan of another cuDNN.

        Raises:
            UnsupportedError: names both versions.
        """
        if self.version != version:
            raise UnsupportedError(
                f"the plan was made by cuDNN {self.version}, and {version} is in use here; plan it again with that"
            )

    def check_front_end(self, version: str) -> None:
        """Refuse a plan that another front end wrote.

        Raises:
            UnsupportedError: names both versions.
        """
        major, minor, patch = (*numbers(version), 0, 0, 0)[:3]
        here = number_of((major, minor, patch))
        if self.front_end != here:
            raise UnsupportedError(
                f"the plan was written by front end {self.front_end}, and {here} ({version}) is in use here; plan it "
                "again with that"
            )

    def check_device(self, here: tuple[int, int], title: str, name: str) -> None:
        """Refuse a plan of another device, by what cuDNN itself goes by.

        Args:
            here: 100 times the compute capability, and the multiprocessors, of the device on which it is to be loaded.
            title: of that device by its driver.
            name: of it here, for example ``"cuda:0"``.

        Raises:
            WrongDeviceError: names both.
        """
        told = self.device.get("deviceVer"), self.device.get("multiProcessorCount")
        if told != here:
            raise WrongDeviceError(
                f"the plan was made for {self.device.get('deviceName')} (deviceVer {told[0]}, {told[1]} "
                f"multiprocessors), and {name} is {title} ({here[0]}, {here[1]}); plan it for "
                "CudnnWrapper.description"
            )


def written_in(plan: CudnnPlan) -> Written:
    """Read a plan's bytes.

    Raises:
        ArgumentError: they are damaged, or are of another operation than the plan says.
    """
    try:
        _, inner, _ = plan_json(plan.serialized)
    except Refused as error:
        raise ArgumentError(f"plan: these bytes are no serialized plan of cuDNN: {error}") from None
    outer = read_ubjson(plan.serialized)
    version, front_end = inner.get("cudnnVersion"), outer.get("cudnn_frontend_version")
    if type(version) is not int or type(front_end) is not int:
        raise ArgumentError("plan: these bytes do not tell which cuDNN and which front end made them")
    return Written(version, front_end, inner.get("GPUProfile", {}), _numbers(plan, outer))


def _numbers(plan: CudnnPlan, outer: Mapping[str, Any]) -> tuple[int, ...]:
    drawn = graph_of(plan.operation)
    used = sorted((*drawn["tensors"].values(), *drawn["outputs"].values()), key=lambda one: int(one["uid"]))
    given, arrays = outer.get("variant_pack_uids"), outer.get("tensors")
    known, listed = given if isinstance(given, list) else [], arrays if isinstance(arrays, dict) else {}
    if not all(one["uid"] in known and _is(listed.get(str(one["uid"])), one) for one in used):
        raise ArgumentError(
            f"plan: these bytes are not of the {plan.operation.name} that the plan names; plan it again"
        )
    return tuple(one["uid"] for one in used)


def _is(written: Any, drawn: Mapping[str, Any]) -> bool:
    """Whether an array lies as the operation says; in attention's gradient the front end has turned k and v."""
    if not isinstance(written, dict):
        return False
    axes, steps = written.get("dim"), written.get("stride")
    if not isinstance(axes, list) or not isinstance(steps, list) or len(axes) != len(steps):
        return False
    same = sorted(zip(axes, steps, strict=True)) == sorted(zip(drawn["shape"], drawn["strides"], strict=True))
    return same and written.get("data_type") == _DTYPES[drawn["dtype"]]

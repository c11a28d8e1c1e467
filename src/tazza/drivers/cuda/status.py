"""What the driver answers: its errors as ours, and which of them a context never recovers from."""

from __future__ import annotations

from typing import Any

from tazza.errors import BackendError, DeviceLostError, OutOfMemoryError

__all__ = ["NOT_READY", "OUT_OF_MEMORY", "STICKY", "failure", "invoke"]

OUT_OF_MEMORY, NOT_INITIALIZED, NOT_READY = 2, 3, 600

# After the first group "the process must be terminated and relaunched", says the documentation of CUresult:
# https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html. The second group says of itself that the context
# or the device behind it is gone, which for a primary context that is in use comes to the same.
STICKY = frozenset(
    {
        226,  # CONTAINED
        700,  # ILLEGAL_ADDRESS
        702,  # LAUNCH_TIMEOUT
        710,  # ASSERT
        714,  # HARDWARE_STACK_ERROR
        715,  # ILLEGAL_INSTRUCTION
        716,  # MISALIGNED_ADDRESS
        717,  # INVALID_ADDRESS_SPACE
        718,  # INVALID_PC
        719,  # LAUNCH_FAILED
        721,  # TENSOR_MEMORY_LEAK
        911,  # EXTERNAL_DEVICE
    }
    | {
        46,  # DEVICE_UNAVAILABLE
        214,  # ECC_UNCORRECTABLE
        220,  # NVLINK_UNCORRECTABLE
        709,  # CONTEXT_IS_DESTROYED
        810,  # MPS_CLIENT_TERMINATED
    }
)

_TEXTS = {  # what the driver's own text does not say
    NOT_INITIALIZED: (
        "CUDA is not initialised in this process",
        "a process forked from one that used CUDA cannot use it: start processes with multiprocessing's 'spawn'",
    ),
    209: (
        "the image has no code for this device",
        "compile for its compute capability; an emulated device runs kernels from their source alone",
    ),
    304: ("a call of the operating system failed", "look at `tazza doctor`"),
    802: ("the system is not ready", "look at `tazza doctor`; with NVSwitch the fabric manager has to run"),
    803: ("the kernel module and libcuda.so.1 have different versions", "reboot, or reinstall the driver"),
}


def invoke(api: Any, call: str, *args: Any) -> tuple[Any, ...]:
    """Call the driver; what it answers, the status first.

    Raises:
        BackendError: the loaded driver, or the bindings, do not have that function, which they say by a RuntimeError.
    """
    try:
        answer: tuple[Any, ...] = getattr(api, call)(*args)
    except RuntimeError as error:
        raise BackendError(f"the driver cannot do this: {error}", backend="cuda", call=call, hint=_UPDATE) from error
    return answer


def failure(api: Any, call: str, status: Any, requested: int, *, lost: bool = False) -> BackendError:
    """Make the error for a status that is not success.

    Args:
        api: the module `cuda.bindings.driver`.
        call: the driver's function.
        status: the CUresult that it answered.
        requested: bytes asked for, where it was memory.
        lost: the context behind the call is gone with it.
    """
    code = int(status)
    text, hint = _TEXTS.get(code, ("", ""))
    if not text:
        text = _text_of(api, status)
    symbol = str(getattr(status, "name", "")) or f"CUresult {code}"
    if code == OUT_OF_MEMORY:
        return OutOfMemoryError(text, requested=requested, backend="cuda", call=call, code=code, symbol=symbol)
    kind = DeviceLostError if lost else BackendError
    return kind(text, backend="cuda", call=call, code=code, symbol=symbol, hint=hint)


def _text_of(api: Any, status: Any) -> str:
    try:
        told, text = invoke(api, "cuGetErrorString", status)
    except BackendError:  # it is about the text of another error, whose code and symbol are known
        told, text = 1, b""
    return text.decode() if not int(told) and text else "the driver has no text for this status"


_UPDATE = "update NVIDIA's driver; `tazza doctor` shows which one is loaded"

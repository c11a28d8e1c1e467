"""For the scripts of test_libraries.py: the emulated libraries by ctypes, arrays on a device, and what is expected."""

import ctypes
from collections.abc import Sequence
from ctypes import c_int as Int
from ctypes import c_size_t as Z
from ctypes import c_void_p as P
from typing import Any

import numpy as np

import cuda_emulator

ONE, ZERO = ctypes.c_float(1), ctypes.c_float(0)
Array = np.ndarray[Any, np.dtype[Any]]


def checked(result: Any) -> Any:
    """What a call of cuda.bindings gives beside its status, which must be success."""
    assert not result[0], result[0]
    return result[1] if len(result) == 2 else result[1:]


class Device:
    """A device with a stream, its context current."""

    def __init__(self, ordinal: int = 0) -> None:
        from cuda.bindings import driver

        self.driver: Any = driver
        checked(driver.cuInit(0))
        self.context = checked(driver.cuDevicePrimaryCtxRetain(checked(driver.cuDeviceGet(ordinal))))
        self.enter()
        self.stream = self.new_stream()

    def enter(self) -> None:
        """Makes the context current in this thread."""
        checked(self.driver.cuCtxSetCurrent(self.context))

    def new_stream(self) -> int:
        """A stream that does not wait for the default one."""
        return int(checked(self.driver.cuStreamCreate(1)))

    def allocate(self, nbytes: int) -> int:
        """Memory, poisoned."""
        return int(checked(self.driver.cuMemAlloc(nbytes)))

    def put(self, array: Array) -> int:
        """A copy of an array on the device."""
        address = self.allocate(array.nbytes)
        checked(self.driver.cuMemcpyHtoD(address, np.ascontiguousarray(array).ctypes.data, array.nbytes))
        return address

    def get(self, address: int, shape: Sequence[int]) -> Array:
        """An array on the host, once the stream is done."""
        self.finish()
        result = np.empty(shape, "f4")
        checked(self.driver.cuMemcpyDtoH(result.ctypes.data, address, result.nbytes))
        return result

    def finish(self) -> Any:
        """Waits for the stream; raises what it met."""
        checked(self.driver.cuStreamSynchronize(self.stream))


def library(name: str) -> ctypes.CDLL:
    """One of the emulated libraries, by the name that everybody uses."""
    loaded = ctypes.CDLL(name)
    assert hasattr(loaded, "emulated_library")
    for call in ("cudnnGetErrorString", "cublasGetStatusName", "cublasGetStatusString", "emulated_library"):
        if hasattr(loaded, call):
            getattr(loaded, call).restype = ctypes.c_char_p
    if hasattr(loaded, "cudnnGetVersion"):
        loaded.cudnnGetVersion.restype = Z
    return loaded


class Convolution:
    """A convolution of (images, channels, height, width) by (filters, channels of a group, height, width)."""

    def __init__(
        self,
        dnn: ctypes.CDLL,
        x: Array,
        w: Array,
        padding: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        self.dnn, self.options = dnn, (padding, stride, dilation, groups)
        self.x, self.w = x, w
        self.how, self.x_d, self.w_d, self.y_d = (
            self._made(kind) for kind in ("Convolution", "Tensor", "Filter", "Tensor")
        )
        set_up = dnn.cudnnSetConvolution2dDescriptor
        assert not set_up(self.how, padding, padding, stride, stride, dilation, dilation, 1, 0)
        assert not dnn.cudnnSetConvolutionGroupCount(self.how, groups)
        assert not dnn.cudnnSetConvolutionMathType(self.how, 3)
        assert not dnn.cudnnSetTensor4dDescriptor(self.x_d, 0, 0, *x.shape)
        assert not dnn.cudnnSetFilter4dDescriptor(self.w_d, 0, 0, *w.shape)
        extents = [Int() for _ in range(4)]
        ask = dnn.cudnnGetConvolution2dForwardOutputDim
        assert not ask(self.how, self.x_d, self.w_d, *(ctypes.byref(one) for one in extents))
        self.shape = tuple(one.value for one in extents)
        assert not dnn.cudnnSetTensor4dDescriptor(self.y_d, 0, 0, *self.shape)

    def _made(self, kind: str) -> P:
        made = P()
        assert not getattr(self.dnn, f"cudnnCreate{kind}Descriptor")(ctypes.byref(made))
        return made

    def workspace(self, handle: P, algorithm: int = 2) -> int:
        """Bytes that an algorithm needs."""
        size = Z()
        ask = self.dnn.cudnnGetConvolutionForwardWorkspaceSize
        assert not ask(handle, self.x_d, self.w_d, self.how, self.y_d, algorithm, ctypes.byref(size))
        return size.value

    def forward(self, handle: P, x: int, w: int, y: int, scratch: int, size: int, algorithm: int = 2) -> int:
        """The status."""
        one, zero = ctypes.byref(ONE), ctypes.byref(ZERO)
        first = (handle, one, self.x_d, P(x), self.w_d, P(w), self.how, algorithm, P(scratch), Z(size))
        return int(self.dnn.cudnnConvolutionForward(*first, zero, self.y_d, P(y)))

    def expected(self) -> Array:
        """The same, by NumPy."""
        return convolved(self.x, self.w, *self.options)


def convolved(x: Array, w: Array, padding: int, stride: int, dilation: int, groups: int) -> Array:
    """The definition, in float64."""
    x = np.pad(x.astype("f8"), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    (n, channels, *size), (k, _, *kernel) = x.shape, w.shape
    height, width = ((size[i] - dilation * (kernel[i] - 1) - 1) // stride + 1 for i in range(2))
    y = np.zeros((n, k, height, width))
    each, filters = channels // groups, k // groups
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation, j * dilation
            part = x[:, :, top : top + stride * height : stride, left : left + stride * width : stride]
            part = part[:, :, :height, :width]
            for group in range(groups):
                own = slice(group * filters, (group + 1) * filters)
                of_group = part[:, group * each : (group + 1) * each]
                y[:, own] += np.einsum("nchw,kc->nkhw", of_group, w[own, :, i, j])
    return y


def handle_of(dnn: ctypes.CDLL, stream: int) -> P:
    """A handle of cuDNN in the current context, bound to a stream."""
    handle = P()
    assert not dnn.cudnnCreate(ctypes.byref(handle)), last_error(dnn)
    assert not dnn.cudnnSetStream(handle, P(stream)), last_error(dnn)
    return handle


def last_error(dnn: ctypes.CDLL) -> str:
    """What cuDNN says about this thread's last failure."""
    text = ctypes.create_string_buffer(256)
    dnn.cudnnGetLastErrorString(text, Z(256))
    return text.value.decode()


def hazards() -> list[str]:
    """The hazards found so far."""
    emulator = cuda_emulator.started()
    assert emulator is not None
    return [hazard["text"] for hazard in emulator.report()["hazards"]]

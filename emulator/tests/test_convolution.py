"""The convolution of the emulated libcudnn: its results, its algorithms, its place in the queue."""

import pytest

from .conftest import CONVOLUTION, Passes


@pytest.mark.parametrize("algorithm", [0, 2, 7])
def test_a_convolution_is_computed(passes: Passes, algorithm: int) -> None:
    passes(
        CONVOLUTION
        + f"""
for options in ({{}}, dict(padding=0, stride=2), dict(dilation=2), dict(groups=2), dict(stride=2, groups=2, padding=2)):
    one, y = convolution({algorithm}, **options)
    assert one.shape == one.expected().shape
    np.testing.assert_allclose(device.get(y, one.shape), one.expected(), atol=1e-4)
assert not hazards()
"""
    )


def test_algorithms_need_different_memory_and_take_the_time_that_is_declared(passes: Passes) -> None:
    """By the times of events alone: nobody waits for it, however busy the machine is."""
    passes(
        CONVOLUTION
        + """
import time
driver = device.driver
one = Convolution(dnn, drawn(3, 4, 7, 6), drawn(6, 4, 3, 3))
sizes = {algorithm: one.workspace(handle, algorithm) for algorithm in (0, 2, 7)}
assert sizes[0] == 0 and sizes[7] == 3 * sizes[2] > 0
x, w, y, scratch = device.put(one.x), device.put(one.w), device.allocate(4096), device.allocate(sizes[7])
begin, end = (checked(driver.cuEventCreate(0)) for _ in range(2))
def took(algorithm):
    checked(driver.cuEventRecord(begin, device.stream))
    for _ in range(2): assert not one.forward(handle, x, w, y, scratch, sizes[algorithm], algorithm)
    checked(driver.cuEventRecord(end, device.stream))
    checked(driver.cuEventSynchronize(end))
    return float(checked(driver.cuEventElapsedTime(begin, end)))
for algorithm, seconds in ((0, 2000), (2, 3000), (7, 1000)):
    emulator.declare_time(f"cudnnConvolutionForward/{algorithm}", seconds)
start = time.monotonic()
found = {algorithm: took(algorithm) for algorithm in sizes}
for algorithm, milliseconds in ((0, 4e6), (2, 6e6), (7, 2e6)):
    assert 0 <= found[algorithm] - milliseconds < 6e4, found
assert time.monotonic() - start < 60
emulator.declare_time("cudnnConvolutionForward/7", 0)
assert took(7) < 6e4
for call, seconds in (("cudnnConvolutionForward", 1), ("cuMemAlloc/1", 1), ("cudnnConvolutionForward/0", -1)):
    try: emulator.declare_time(call, seconds)
    except ValueError as error: assert "expected" in str(error)
    else: raise AssertionError(call)
"""
    )


def test_the_list_of_algorithms_says_what_each_needs(passes: Passes) -> None:
    passes(
        """
device = Device()
handle = handle_of(dnn, device.stream)
class Performance(ctypes.Structure):
    _fields_ = [("algorithm", Int), ("status", Int), ("time", ctypes.c_float), ("memory", Z), ("determinism", Int),
                ("math", Int), ("reserved", Int * 3)]
one = Convolution(dnn, drawn(3, 4, 7, 6), drawn(6, 4, 3, 3))
size = one.workspace(handle)
def listed(call, *descriptors, most=8):
    told, found = Int(), (Performance * 8)()
    assert not getattr(dnn, call)(handle, *descriptors, most, ctypes.byref(told), found), last_error(dnn)
    return [(each.algorithm, each.memory, each.determinism) for each in found[: told.value]]
forward = "cudnnGetConvolutionForwardAlgorithm_v7", one.x_d, one.w_d, one.how, one.y_d
assert listed(*forward) == [(2, size, 1), (0, 0, 1), (7, 3 * size, 1)]
assert listed(*forward, most=2) == [(2, size, 1), (0, 0, 1)]
gradients = [(1, size, 1), (0, 0, 0)]
assert listed("cudnnGetConvolutionBackwardDataAlgorithm_v7", one.w_d, one.y_d, one.how, one.x_d) == gradients
assert listed("cudnnGetConvolutionBackwardFilterAlgorithm_v7", one.x_d, one.y_d, one.how, one.w_d) == gradients
with emulator.injecting("cudnnConvolutionForward:1:NOT_SUPPORTED"):
    assert one.forward(handle, 1, 1, 1, 0, 0, 0) == 3000 and "NOT_SUPPORTED" in last_error(dnn)
"""
    )


def test_it_waits_for_its_turn_and_is_late_under_jitter(passes: Passes) -> None:
    """Input is written, and the result overwritten, in stream order; the host gets its control back before."""
    passes(
        CONVOLUTION
        + """
import time
driver = device.driver
one = Convolution(dnn, np.ones((8, 4, 7, 6), "f4"), drawn(6, 4, 3, 3))
x, w = device.put(np.full(one.x.shape, np.nan, "f4")), device.put(one.w)
y, size = device.allocate(4 * int(np.prod(one.shape))), one.workspace(handle)
scratch = device.allocate(size)
checked(driver.cuMemsetD32Async(x, 0x3f800000, one.x.size, device.stream))  # 1.0f
start = time.monotonic()
assert not one.forward(handle, x, w, y, scratch, size)
submitted = time.monotonic() - start
assert int(driver.cuStreamQuery(device.stream)[0]) == 600, "it is done already"
np.testing.assert_allclose(device.get(y, one.shape), one.expected(), atol=1e-4)
assert time.monotonic() - start > 2 * submitted
""",
        jitter_us=20_000,
    )


@pytest.mark.parametrize("algorithm", [0, 1])
def test_gradients_are_computed(passes: Passes, algorithm: int) -> None:
    passes(
        CONVOLUTION
        + f"""
algorithm = {algorithm}
"""
        + """
for options in ({}, dict(stride=2), dict(groups=2), dict(dilation=2, padding=2)):
    one, _ = convolution(**options)
    dy, size = drawn(*one.shape), one.workspace(handle) if algorithm else 0
    scratch = device.allocate(size) if size else 0
    dx, dw, db = (device.put(np.full(shape, np.nan, "f4")) for shape in (one.x.shape, one.w.shape, (6,)))
    unit, zero = ctypes.byref(ONE), ctypes.byref(ZERO)
    sent = P(device.put(dy))
    x, w, room = P(device.put(one.x)), P(device.put(one.w)), (one.how, algorithm, P(scratch), Z(size))
    status = dnn.cudnnConvolutionBackwardData(handle, unit, one.w_d, w, one.y_d, sent, *room, zero, one.x_d, P(dx))
    assert status == 0, last_error(dnn)
    status = dnn.cudnnConvolutionBackwardFilter(handle, unit, one.x_d, x, one.y_d, sent, *room, zero, one.w_d, P(dw))
    assert status == 0, last_error(dnn)
    b_d = P(); dnn.cudnnCreateTensorDescriptor(ctypes.byref(b_d)); dnn.cudnnSetTensor4dDescriptor(b_d, 0, 0, 1, 6, 1, 1)
    assert dnn.cudnnConvolutionBackwardBias(handle, unit, one.y_d, sent, zero, b_d, P(db)) == 0, last_error(dnn)
    np.testing.assert_allclose(device.get(db, (6,)), dy.sum((0, 2, 3)), atol=1e-3)
    # The adjoint: <dy, conv(u, w)> = <dx, u> for any u, and the same for the weights.
    for u in (drawn(*one.x.shape) for _ in range(3)):
        left, right = (dy * convolved(u, one.w, *one.options)).sum(), (device.get(dx, one.x.shape) * u).sum()
        assert abs(left - right) < 1e-3 * (1 + abs(left)), (left, right)
    for v in (drawn(*one.w.shape) for _ in range(3)):
        left, right = (dy * convolved(one.x, v, *one.options)).sum(), (device.get(dw, one.w.shape) * v).sum()
        assert abs(left - right) < 1e-3 * (1 + abs(left)), (left, right)
"""
    )

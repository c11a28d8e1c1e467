"""PyTorch's CPU tensors as the arrays of a context."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
import tazza.hot
from tazza.errors import ArgumentError, OutOfMemoryError, UnsupportedError, UsageError, WrongDeviceError
from tazza.testing import simulate
from tests.interop import need

torch = need("torch")
compat = importlib.import_module("array_api_compat.torch")
pytestmark = pytest.mark.interop

TIMEOUT = 20.0


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu", seed=7, arrays="torch") as made:
        yield made


# Memory ------------------------------------------------------------------------------------------------------------


def test_tensors_are_in_pooled_memory_that_their_storage_keeps(ctx: tz.Context) -> None:
    x = ctx.empty((4, 256), "float32")
    assert (type(x), x.dtype, tuple(x.shape), x.device.type) == (torch.Tensor, torch.float32, (4, 256), "cpu")
    assert ctx.memory.stats().live == 4096
    view = x[1:].reshape(-1)
    address = x.data_ptr()
    del x
    gc.collect()
    assert ctx.memory.stats().live == 4096
    assert view.data_ptr() == address + 1024
    del view
    assert ctx.memory.stats().live == 0


def test_what_autograd_saved_keeps_the_memory(ctx: tz.Context) -> None:
    x, w = ctx.asarray(np.full(256, 3.0)), torch.ones(256, dtype=torch.float64, requires_grad=True)
    y = (x * w).sum()
    del x
    gc.collect()
    others = [ctx.empty(256) for _ in range(4)]
    for other in others:
        other.fill_(-1.0)
    y.backward()
    assert (w.grad == 3.0).all()


def test_a_limit_binds(ctx: tz.Context) -> None:
    with tz.open("cpu", arrays="torch", memory_limit=4096) as small:
        kept = small.empty(256)
        with pytest.raises(OutOfMemoryError):
            small.empty(512)
        with pytest.raises(OutOfMemoryError):
            small.random.random(512)
        assert kept.untyped_storage().nbytes() == 2048
    assert ctx.memory.stats().live == 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_shapes(ctx: tz.Context, shape: tuple[int, ...]) -> None:
    assert tuple(ctx.empty(shape, torch.int8).shape) == shape


def test_pooled_tensors_cannot_be_resized(ctx: tz.Context) -> None:
    with pytest.raises(RuntimeError, match="not resizable"):
        ctx.empty(4).resize_(1000)


# Dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(tz.device("cpu").capabilities.dtypes))
def test_each_dtype_by_each_of_its_names(ctx: tz.Context, name: str) -> None:
    wanted = getattr(torch, name)
    assert {ctx.empty(2, given).dtype for given in (name, wanted, np.dtype(name))} == {wanted}
    assert ctx.to_numpy(ctx.empty(2, name)).dtype == np.dtype(name)


def test_bfloat16(ctx: tz.Context) -> None:
    for given in ("bfloat16", torch.bfloat16):
        x = ctx.empty((2, 3), given)
        assert x.dtype is torch.bfloat16
        assert x.untyped_storage().nbytes() == 12
    ctx.fill(x, 1.5)
    assert (x == 1.5).all()
    ctx.fill(x, b"\x00\x40")
    assert (x == 2.0).all()
    y = ctx.asarray(x, copy=True)
    ctx.fill(x, 0)
    assert (y == 2.0).all()
    ctx.copy(x, y)
    assert (x == 2.0).all()
    with pytest.raises(UnsupportedError, match=r"no bfloat16; the nearest is float32: x.to\(torch.float32\)"):
        ctx.to_numpy(x)
    with pytest.raises(ArgumentError, match="value"):
        ctx.fill(x, "much")
    assert ctx.asarray([1.5, 2.5], dtype="bfloat16").dtype is torch.bfloat16


def test_other_dtypes_name_the_nearest(ctx: tz.Context) -> None:
    for dtype, nearest in ((torch.float8_e5m2, "float32"), (torch.complex32, "complex64")):
        with pytest.raises(UnsupportedError, match=f"the nearest is {nearest}"):
            ctx.empty(3, dtype)
    with pytest.raises(ArgumentError, match="dtype"):
        ctx.empty(3, "no such dtype")
    with pytest.raises(UnsupportedError, match="nearest"):
        ctx.asarray(np.zeros(3, "datetime64[s]"))


# Conversion --------------------------------------------------------------------------------------------------------


def test_host_data_is_aliased_only_where_it_can_be(ctx: tz.Context) -> None:
    values = np.arange(6.0).reshape(2, 3)
    alias = ctx.asarray(values)
    values[0, 0] = 42.0
    assert alias[0, 0] == 42.0
    assert ctx.asarray(values, copy=False).data_ptr() == alias.data_ptr()
    private = ctx.asarray(values, copy=True)
    values[0, 0] = 0.0
    assert private[0, 0] == 42.0
    readonly = np.arange(4.0)
    readonly.flags.writeable = False
    for odd in (readonly, values[:, ::-1], np.arange(3, dtype=">i4")):
        assert (ctx.to_numpy(ctx.asarray(odd)) == odd).all()
        with pytest.raises(ArgumentError, match="copy"):
            ctx.asarray(odd, copy=False)


def test_lists_become_what_numpy_makes_of_them(ctx: tz.Context) -> None:
    assert ctx.asarray([[1, 2], [3, 4]]).dtype is torch.int64
    assert ctx.asarray([1.0]).dtype is torch.float64
    assert ctx.asarray([1, 2], dtype="float32").dtype is torch.float32
    with pytest.raises(ArgumentError, match="obj: list cannot become an array"):
        ctx.asarray([[1], [2, 3]])
    with pytest.raises(ArgumentError, match="obj: list cannot become an array"):
        ctx.asarray([torch.ones((), requires_grad=True)])


def test_autograd_is_not_touched_unless_it_must_copy(ctx: tz.Context) -> None:
    w = torch.ones(3, requires_grad=True)
    product = w * 2
    assert ctx.asarray(w) is w
    assert ctx.asarray(product, dtype="float32") is product
    for made in (ctx.asarray(w, copy=True), ctx.asarray(product, dtype="float64")):
        assert not made.requires_grad
        assert made.grad_fn is None
        assert tz.context_of(made) is ctx
    assert (ctx.to_numpy(product) == 2.0).all()
    assert ctx.private_copy(product).grad_fn is None
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert ctx.asarray(parameter) is parameter


def test_tensors_that_cannot_be_used_are_named(ctx: tz.Context) -> None:
    with pytest.raises(ArgumentError, match="without a copy"):
        ctx.asarray(torch.zeros(2), dtype="float64", copy=False)
    with pytest.raises(ArgumentError, match="without a copy"):
        ctx.asarray(torch.zeros(2, device="meta"), copy=False)
    with pytest.raises(ArgumentError, match="cannot be copied"):
        ctx.asarray(torch.zeros(2, device="meta"))
    with pytest.raises(ArgumentError, match="to_dense"):
        ctx.asarray(torch.zeros(2, 2).to_sparse(), copy=True)
    with pytest.raises(ArgumentError, match="src: got device"):
        ctx.copy(ctx.empty(2), torch.zeros(2, dtype=torch.float64, device="meta"))


def test_conjugates_come_out_as_numbers(ctx: tz.Context) -> None:
    x = torch.tensor([1 + 2j]).conj()
    assert x.is_conj()
    assert ctx.to_numpy(x)[0] == 1 - 2j
    target = ctx.empty(1, "complex64")
    ctx.copy(target, x)
    assert target[0] == 1 - 2j


def test_buffers_are_seen_as_tensors(ctx: tz.Context) -> None:
    buffer = ctx.allocate(24, dtype="float32", shape=(2, 3))
    ctx.fill(buffer, 2.0)
    x = ctx.asarray(buffer)
    x += 1
    assert (ctx.to_numpy(buffer) == 3.0).all()
    assert (ctx.asarray(buffer, copy=True) == 3.0).all()
    assert ctx.asarray(ctx.allocate(5)).dtype is torch.uint8
    double = ctx.launch(torch.mul, buffer, 2).result(TIMEOUT)
    assert (double == 6.0).all()


@pytest.mark.skipif(tazza.hot.COMPILED, reason="compiled buffers cannot be made read-only by hand")
def test_read_only_buffers_are_copied_or_refused(ctx: tz.Context) -> None:
    buffer = ctx.allocate(24, dtype="float32")
    buffer.readonly = True
    assert ctx.asarray(buffer).data_ptr() != buffer.address
    with pytest.raises(UnsupportedError, match="read-only"):
        ctx.asarray(buffer, copy=False)
    with pytest.raises(UnsupportedError, match="read-only"):
        ctx.launch(torch.sum, buffer).result(TIMEOUT)


def test_arrays_move_between_libraries_and_devices(ctx: tz.Context) -> None:
    values = np.arange(6, dtype="float32").reshape(2, 3)
    with simulate(devices=1), tz.open("sim:0") as sim, tz.open("cpu") as plain:
        there = sim.asarray(ctx.asarray(values))
        assert (sim.to_numpy(there) == values).all()
        back = ctx.asarray(there)
        assert isinstance(back, torch.Tensor)
        assert (ctx.to_numpy(back) == values).all()
        with pytest.raises(ArgumentError, match="without a copy"):
            ctx.asarray(there, copy=False)
        assert (plain.asarray(ctx.asarray(values)) == values).all()
        # Results of tasks move by themselves.
        made = ctx.launch(torch.arange, 4)
        assert sim.to_numpy(sim.launch(np.sum, made)).tolist() == 6
        assert ctx.launch(torch.sum, sim.launch(np.ones, 3)).result(TIMEOUT) == 3
        with pytest.raises(WrongDeviceError, match=r"a torch array of the host; move it with ctx.asarray"):
            sim.launch(np.sum, torch.ones(3))
        with pytest.raises(ArgumentError, match="require gradient"):
            sim.asarray(torch.ones(3, requires_grad=True))


def test_the_context_is_found_from_data(ctx: tz.Context) -> None:
    x = ctx.empty((4, 4))
    for known in (x, x[1:].T, x.detach(), x.numpy(), ctx.random.random(3), ctx.asarray(ctx.allocate(8))):
        assert tz.context_of(known) is ctx
    for foreign in (torch.zeros(3), torch.zeros(2, 2).to_sparse(), x * 2):
        with pytest.raises(UsageError, match="belongs to no live context"):
            tz.context_of(foreign)


# Copies and fills --------------------------------------------------------------------------------------------------


def test_copies_and_fills(ctx: tz.Context) -> None:
    x, y = ctx.empty((2, 3), "float32"), ctx.empty((2, 3), "float32")
    ctx.fill(x, 4)
    ctx.copy(y, x)
    assert (y == 4).all()
    ctx.copy(y, np.ones((2, 3), "float32"))
    host = np.zeros((2, 3), "float32")
    ctx.copy(host, y)
    assert (host == 1).all()
    ctx.fill(y[:, ::2], 7.0)
    assert y[0].tolist() == [7.0, 1.0, 7.0]

    def inside(a: Any, b: Any) -> None:
        here = tz.current()
        here.fill(a, 3)
        here.copy(b, a)

    buffer = ctx.allocate(24, dtype="float32", shape=(2, 3))
    ctx.launch(inside, x, buffer, stream=ctx.new_stream()).result(TIMEOUT)
    assert (ctx.to_numpy(buffer) == 3).all()


def test_autograd_notices_copies_and_fills(ctx: tz.Context) -> None:
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(ArgumentError, match="dst: this tensor requires grad"):
        ctx.fill(leaf, 0)
    with pytest.raises(ArgumentError, match="dst: this tensor requires grad"):
        ctx.copy(leaf, torch.zeros(3))
    factor = torch.ones(3)
    product = (leaf * factor).sum()
    ctx.fill(factor, 5.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# Work --------------------------------------------------------------------------------------------------------------


def test_tasks_on_worker_streams_keep_the_graph(ctx: tz.Context) -> None:
    w = torch.ones(3, requires_grad=True)
    first = ctx.launch(torch.mul, w, 3, stream=ctx.new_stream())
    second = ctx.launch(torch.sum, first, stream=ctx.new_stream())
    second.result(TIMEOUT).backward()
    assert w.grad.tolist() == [3.0, 3.0, 3.0]
    assert ctx.launch(type, np.ones(2)).result(TIMEOUT) is np.ndarray


def test_the_namespace(ctx: tz.Context) -> None:
    assert ctx.xp is compat
    with ctx.on(ctx.new_stream()):
        with pytest.raises(UsageError, match="launch"):
            _ = ctx.xp
        assert ctx.launch(lambda: tz.current().xp.zeros(2)).result(TIMEOUT).tolist() == [0.0, 0.0]


def test_deep_learning_operations_take_tensors(ctx: tz.Context) -> None:
    x, w = (ctx.random.standard_normal(shape, dtype="float32") for shape in ((2, 3, 6, 6), (4, 3, 3, 3)))
    y = ctx.dnn.conv2d(x, w, padding=1, activation="relu")
    torch.testing.assert_close(y, torch.relu(torch.nn.functional.conv2d(x, w, padding=1)), rtol=1e-5, atol=1e-5)


# Random numbers ----------------------------------------------------------------------------------------------------

DRAWS = {
    "random": lambda g: g.random((3, 5)),
    "float32": lambda g: g.random(7, dtype="float32"),
    "one": lambda g: g.random(),
    "uniform": lambda g: g.uniform(-1, 1, 5),
    "words": lambda g: g.random_raw(3),
    "integers": lambda g: g.integers(0, 10, 20),
    "normal": lambda g: g.standard_normal((2, 3), dtype="float32"),
    "exponential": lambda g: g.exponential(2.0, 4),
    "permutation": lambda g: g.permutation(9),
    "permutation of an array": lambda g: g.permutation(np.arange(6.0)),
    "choice": lambda g: g.choice(100, 5, replace=False),
    "shard": lambda g: g.random(10, shard=(1, 3)),
    "child": lambda g: g.for_purpose("dropout").random(3),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_are_tensors_with_numpys_bits(ctx: tz.Context, draw: str) -> None:
    tensor = DRAWS[draw](ctx.random)
    with tz.open("cpu", seed=7) as plain:
        expected = np.asarray(DRAWS[draw](plain.random))
        assert plain.random.state() == ctx.random.state()
    assert isinstance(tensor, torch.Tensor)
    actual = ctx.to_numpy(tensor)
    assert (actual.dtype, actual.shape, actual.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_tensors_are_permuted_and_chosen_from(ctx: tz.Context) -> None:
    values = np.arange(12.0).reshape(4, 3)
    expected = tz.Generator(7).permutation(values, axis=1)
    assert (ctx.to_numpy(ctx.random.permutation(torch.from_numpy(values), axis=1)) == expected).all()
    free = tz.Generator(7).permutation(torch.from_numpy(values), axis=1)  # a generator that makes NumPy arrays
    assert (free.numpy() == expected).all()
    chosen = ctx.random.choice(torch.arange(5) * 10, 3)
    assert set(chosen.tolist()) <= {0, 10, 20, 30, 40}


def test_tasks_draw_tensors_with_numpys_bits(ctx: tz.Context) -> None:
    def draw() -> Any:
        return tz.current().random.random(9)

    tensor = ctx.launch(draw, stream=ctx.new_stream()).result(TIMEOUT)
    with tz.open("cpu", seed=7) as plain:
        assert (plain.launch(draw).result(TIMEOUT) == ctx.to_numpy(tensor)).all()
    assert isinstance(tensor, torch.Tensor)


# State -------------------------------------------------------------------------------------------------------------


def test_modules_and_optimizers_are_registered_as_they_are(tmp_path: Path) -> None:
    def make() -> tuple[Any, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1).bfloat16())
        return model, torch.optim.Adam(model.parameters(), lr=0.01)

    def step(model: Any, optimizer: Any, x: Any) -> None:
        hidden = model[1](model[0](x))
        model[2](hidden.bfloat16()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    path = tmp_path / "run.tazza"
    with tz.open("cpu", seed=7, arrays="torch") as ctx:
        model, optimizer = make()
        ctx.state.register("model", model)
        ctx.state.register("optimizer", optimizer)
        x = ctx.random.random((5, 3), dtype="float32")
        step(model, optimizer, x)
        ctx.save(path)
        step(model, optimizer, x)
        expected = {name: value.clone() for name, value in model.state_dict().items()}
    with tz.open("cpu", seed=7, arrays="torch") as other:
        model, optimizer = make()
        other.state.register("model", model)
        other.state.register("optimizer", optimizer)
        other.load(path)
        step(model, optimizer, x)
        actual = model.state_dict()
        assert all(torch.equal(actual[name], value) for name, value in expected.items())
        assert model[2].weight.dtype is torch.bfloat16


def test_state_of_tensors_is_readable_with_other_arrays(tmp_path: Path) -> None:
    class Holder:
        def __init__(self, value: Any) -> None:
            self.value = value

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: Any) -> None:
            self.value = state["value"]

    with tz.open("cpu", seed=7, arrays="torch") as ctx:
        ctx.state.register("holder", Holder(torch.arange(3)))
        ctx.save(tmp_path / "file")
    with tz.open("cpu", seed=7) as plain:
        holder = Holder(None)
        plain.state.register("holder", holder)
        plain.load(tmp_path / "file")
        assert holder.value.tolist() == [0, 1, 2]
        assert isinstance(holder.value, np.ndarray)


# Without PyTorch ---------------------------------------------------------------------------------------------------


def test_a_missing_library_is_named_with_what_to_install() -> None:
    program = """
        import sys
        sys.modules["torch"] = None
        import tazza as tz
        try:
            tz.context("cpu", arrays="torch")
        except tz.errors.BackendUnavailableError as error:
            print(error.backend, "|", error.hint)
        with tz.open("cpu") as ctx:
            print(ctx.spec.arrays)
    """
    code = "\n".join(line[8:] for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["torch | pip install torch", "numpy"]


def test_torch_is_imported_late() -> None:
    code = "import sys, tazza as tz; ctx = tz.context('cpu'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_a_copy_for_numpy_is_private(ctx: tz.Context) -> None:
    tensor = torch.ones(3)
    with tz.open("cpu") as plain:
        private = plain.asarray(tensor, copy=True)
        tensor.zero_()
        assert private.tolist() == [1.0, 1.0, 1.0]
        assert tz.context_of(private) is plain

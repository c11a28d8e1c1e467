"""Putting oneDNN's primitives together to one operation: reorders between layouts, and room for what is between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np

from tazza.dnn.library import Layout, Operation, Packing
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.binding import Dnnl

__all__ = [
    "ALIGNMENT",
    "FUSED",
    "LAST",
    "Owned",
    "Program",
    "Recipe",
    "Slot",
    "Strategy",
    "UnavailableError",
    "dense",
    "grouped",
]

ALIGNMENT: Final = 64
SCRATCH: Final = -1
_MOST_AXES: Final = 12
LAST: Final = (0, 2, 3, 1)
"""The axes of images whose channels lie innermost, from outermost to innermost."""
# Not the library's own ReLU, whose max(x, 0) is 0 for NaN. x * min(1, max(0, x * 3e38)) is x or -0 to the bit, and
# keeps NaN; "1 * x + 0" takes the sign off. Medians of five of ResNet-50's shapes were within 4 % of each other.
FUSED: Final = {
    "relu": ((binding.HARD_SWISH, 3e38), (binding.LINEAR, 1.0)),
    "sigmoid": ((binding.LOGISTIC, 0.0),),
    "tanh": ((binding.TANH, 0.0),),
}


class UnavailableError(Exception):
    """The library has no primitive for what a recipe asks; the next strategy is tried. Never leaves this package."""


class Strategy(NamedTuple):
    """One way to put an operation together.

    Attributes:
        layout: of images and matrices between reorders: ``"given"``, as the arrays lie; ``"any"``, as the primitive
            likes it; ``"last"``, channels innermost; ``"dense"``, without gaps; ``"bare"``, as the arrays lie, and
            weights too, which are left to the primitive else.
        skip: how many of the library's own choices are passed over.
    """

    layout: str = "given"
    skip: int = 0


class Slot(NamedTuple):
    """Where an argument of primitives lies: its layout; the number of its array, or `SCRATCH`; the first byte there."""

    layout: int
    array: int
    offset: int = 0


@final
class Owned:
    """Objects of the library, given back together once nothing uses them."""

    def __init__(self, graveyard: Any) -> None:
        self._graveyard = graveyard
        self._objects: list[tuple[str, int]] = []

    def keep(self, destroy: str, made: int) -> int:
        """Own an object; returns it."""
        self._objects.append((destroy, made))
        return made

    def __del__(self) -> None:
        # One append, as in any finaliser: whoever compiles next gives them back.
        self._graveyard.append(self._objects)


class Program(NamedTuple):
    """A finished recipe.

    Attributes:
        slots: all memory that its steps use.
        steps: primitives, each with names of arguments and numbers of slots.
        expected: for each array the dtype, shape and strides in bytes that it must have; None: it is not used.
        names: the implementations that do the work, reorders left out.
        workspace_bytes: scratch memory that one run needs.
        packed: as `Plan.packed`.
        wanted: the layouts of the same inputs.
        staged: inputs that lie in a way that the library has no layout for, and where in the scratch memory NumPy
            copies them to.
        owned: keeps the library's objects.
    """

    slots: tuple[Slot, ...]
    steps: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    expected: tuple[Any, ...]
    names: tuple[str, ...]
    workspace_bytes: int
    packed: tuple[Packing | None, ...]
    wanted: tuple[int, ...]
    staged: tuple[tuple[int, int], ...]
    owned: object


@final
class Recipe:
    """Collects the steps of one operation, in order, and the layouts between them.

    Args:
        dnnl: the library.
        engine: of the library.
        operation: what is done.
        strategy: how.
        graveyard: where the library's objects are left once they are not needed.
    """

    def __init__(self, dnnl: Dnnl, engine: int, operation: Operation, strategy: Strategy, graveyard: Any) -> None:
        self.dnnl, self.engine, self.operation, self.strategy = dnnl, engine, operation, strategy
        self._owned = Owned(graveyard)
        self._arrays = [None if one is None else _settled(one) for one in (*operation.inputs, *operation.outputs)]
        self._steps: list[tuple[int, dict[int, Slot]]] = []
        self._names: list[str] = []
        self._room = self._scratchpad = 0
        self._packed: list[Packing | None] = [None] * len(operation.inputs)
        self._wanted = [0] * len(operation.inputs)
        self._expected: list[Any] = [None if one is None else _expected(one) for one in self._arrays]
        self._staged: dict[int, int] = {}
        for number, given in enumerate(self._arrays):
            if given is not None and given.dtype in binding.DTYPES and not _is_nested(given):
                self._arrays[number] = packed = given._replace(strides=dense(given.shape))
                self._staged[number] = self.scratch(self.strided(packed.dtype, packed.shape, packed.strides)).offset

    def given(self, number: int) -> Layout:
        """The layout of an input, or of an output, counted on from the inputs."""
        layout = self._arrays[number]
        assert layout is not None, "described operations have what they need"
        return layout

    def array(self, number: int, shape: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Slot:
        """The argument that an array is, or a view of it with another shape and strides in elements."""
        given = self.given(number)
        shape = given.shape if shape is None else shape
        layout = self.strided(given.dtype, shape, given.strides if strides is None else strides)
        staged = self._staged.get(number)
        return Slot(layout, number) if staged is None else Slot(layout, SCRATCH, staged)

    def strided(self, dtype: str, shape: Sequence[int], strides: Sequence[int]) -> int:
        """A plain layout.

        Raises:
            UnavailableError: it has more axes than the library knows.
        """
        if len(shape) > _MOST_AXES:
            raise UnavailableError
        return self._owned.keep("dnnl_memory_desc_destroy", self.dnnl.strided(dtype, shape, strides))

    def free_choice(self, dtype: str, shape: Sequence[int]) -> int:
        """The layout that leaves the choice to the primitive."""
        return self._owned.keep("dnnl_memory_desc_destroy", self.dnnl.free_choice(dtype, shape))

    def scratch(self, layout: int) -> Slot:
        """Room in the scratch memory, until the end of the operation."""
        offset = self._room
        self._room += _aligned(self.dnnl.nbytes(layout))
        return Slot(layout, SCRATCH, offset)

    def attributes(self, activation: str | None = None) -> int:
        """Attributes of a primitive: scratch memory is ours, and what is fused."""
        made = self._owned.keep("dnnl_primitive_attr_destroy", self.dnnl.make("dnnl_primitive_attr_create"))
        self.dnnl.do("dnnl_primitive_attr_set_scratchpad_mode", made, binding.USER_SCRATCHPAD)
        if activation is not None:
            after = self._owned.keep("dnnl_post_ops_destroy", self.dnnl.make("dnnl_post_ops_create"))
            for kind, alpha in FUSED[activation]:
                self.dnnl.do("dnnl_post_ops_append_eltwise", after, kind, alpha, 0.0)
            self.dnnl.do("dnnl_primitive_attr_set_post_ops", made, after)
        return made

    def choose(self, function: str, *arguments: Any, skip: int | None = None) -> int:
        """Make a primitive's descriptor, with as many of the library's choices passed over as the strategy says.

        Raises:
            UnavailableError: there is none, or there are not so many.
        """
        made = self.dnnl.make_if_there(function, self.engine, *arguments)
        if made is None:
            raise UnavailableError
        made = self._owned.keep("dnnl_primitive_desc_destroy", made)
        for _ in range(self.strategy.skip if skip is None else skip):
            if not self.dnnl.next_implementation(made):
                raise UnavailableError
        return made

    def layout(self, descriptor: int, what: int) -> int:
        """The layout that a primitive wants an argument in."""
        return self.dnnl.layout(descriptor, what)

    def add(self, descriptor: int, arguments: Mapping[int, Slot], *, names: bool = True) -> None:
        """Add a primitive as the next step."""
        made = self._owned.keep("dnnl_primitive_destroy", self.dnnl.make("dnnl_primitive_create", descriptor))
        scratchpad = self.dnnl.layout(descriptor, binding.SCRATCHPAD)
        self._scratchpad = max(self._scratchpad, self.dnnl.nbytes(scratchpad))
        # Steps follow one another, so one scratchpad behind all the rest serves them all: see `finish`.
        self._steps.append((made, {**arguments, binding.SCRATCHPAD: Slot(scratchpad, SCRATCH, -1)}))
        if names:
            self._names.append(self.dnnl.name(descriptor))

    def line(self, number: int) -> Slot:
        """An array of one axis without gaps, copied if need be: how biases have to lie."""
        given = self.given(number)
        return self.into(self.array(number), self.strided(given.dtype, given.shape, (1,)))

    def like(self, number: int, other: int) -> Slot:
        """Array `number` without gaps and with the order of axes in memory of array `other`, copied if need be."""
        given, order = self.given(number), self.order(other)
        return self.into(self.array(number), self.strided(given.dtype, given.shape, dense(given.shape, order)))

    def order(self, number: int) -> list[int]:
        """The axes of an array from outermost to innermost in memory."""
        given = self.given(number)
        return sorted(range(len(given.shape)), key=lambda axis: -given.strides[axis])

    def into(self, slot: Slot, layout: int) -> Slot:
        """The same values in a layout: itself, or a copy in the scratch memory."""
        if self.dnnl.equal(slot.layout, layout):
            return slot
        copy = self.scratch(layout)
        self.copy(slot, copy)
        return copy

    def onto(self, layout: int, slot: Slot, fill: Callable[[Slot], None]) -> None:
        """Have ``fill(slot)`` make values in a layout, and copy them to `slot` if it has another."""
        if self.dnnl.equal(slot.layout, layout):
            fill(slot)
            return
        made = self.scratch(layout)
        fill(made)
        self.copy(made, slot)

    def copy(self, source: Slot, target: Slot) -> None:
        """Add a reorder."""
        descriptor = self.dnnl.make_if_there(
            "dnnl_reorder_primitive_desc_create",
            source.layout,
            self.engine,
            target.layout,
            self.engine,
            self.attributes(),
        )
        if descriptor is None:
            raise UnavailableError
        self._owned.keep("dnnl_primitive_desc_destroy", descriptor)
        self.add(descriptor, {binding.SRC: source, binding.DST: target}, names=False)

    def weights(self, number: int, slot: Slot, layout: int) -> Slot:
        """Input `number`, of which `slot` is a view, in the layout that a primitive wants: packed before, or here."""
        packing = Packing(("onednn", *self.dnnl.describe(layout)), self.dnnl.nbytes(layout))
        self._packed[number], self._wanted[number] = packing, layout
        if number not in self.operation.packed:
            return self.into(slot, layout)
        self._staged.pop(number, None)  # it comes packed: the packer has copied from whatever layout the array has
        self._expected[number] = np.dtype(np.uint8), (packing.nbytes,), (1,)
        return Slot(layout, number)

    def finish(self, keep: object = None) -> Program:
        """Put everything in its place; `keep` lives as long."""
        slots: dict[Slot, int] = {}
        steps = []
        for primitive, arguments in self._steps:
            placed = tuple(
                (name, slots.setdefault(slot._replace(offset=self._room) if slot.offset < 0 else slot, len(slots)))
                for name, slot in arguments.items()
            )
            steps.append((primitive, placed))
        return Program(
            tuple(slots),
            tuple(steps),
            tuple(self._expected),
            tuple(self._names),
            self._room + self._scratchpad,
            tuple(self._packed),
            tuple(self._wanted),
            tuple(self._staged.items()),
            (self._owned, keep),
        )


def dense(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Strides of an array without gaps, its axes from outermost to innermost in an order; default is their own."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def grouped(given: Layout, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of filters whose first axis is seen as two, groups and filters in each; or as they are."""
    if len(shape) == len(given.shape):
        return given.strides
    return (given.strides[0] * shape[1], *given.strides)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _settled(layout: Layout) -> Layout:
    """The same with the strides of axes without extent as in an array without gaps: they are arbitrary in NumPy."""
    strides, step = list(layout.strides), 1
    for axis in reversed(range(len(strides))):
        if layout.shape[axis] <= 1:
            strides[axis] = step
        step = strides[axis] * max(1, layout.shape[axis])
    return layout._replace(strides=tuple(strides))


def _is_nested(layout: Layout) -> bool:
    """Tell whether each axis steps over all that lies inside of it, as oneDNN wants: no overlap, nothing backwards."""
    axes = [(step, extent) for step, extent in zip(layout.strides, layout.shape, strict=True) if extent > 1]
    inside = 1
    for step, extent in sorted(axes):
        if step < inside:
            return False
        inside = step * extent
    return True


def _expected(layout: Layout) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    # NumPy has no bfloat16: its bits travel as integers.
    dtype = np.dtype("uint16" if layout.dtype == "bfloat16" else layout.dtype)
    return dtype, layout.shape, tuple(step * dtype.itemsize for step in layout.strides)

"""Weights in a library's own layout, packed once for many calls."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Final, final

from tazza.core.context import Context
from tazza.dnn.library import Packing, Plan
from tazza.dnn.workspace import Lease
from tazza.errors import ArgumentError, ClosedError

__all__ = ["TensorWeights", "Weights"]

_LABEL: Final = "packed weights"
_SIGHTS: Final = 3  # a training step looks at the same weights twice, forward and backward, and then changes them


@final
class Weights:
    """Weights that layers take in place of the array, made by ``ctx.dnn.weights(w)``.

    A library that likes another layout packs them in the first call, and again after `changed`. The copies are memory
    of the context, labelled "packed weights"; they go with this object, on `trim`, and where the device runs short, and
    are made anew when they are needed.

    Args:
        ctx: the context whose calls will use them.
        array: as the layers take it; may be changed in place, if `changed` is called before the next use.

    Attributes:
        array: the same.
        version: how often it was changed.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     w = ctx.xp.ones((2, 3), dtype="float32")
    ...     weights = ctx.dnn.weights(w)
    ...     first = ctx.dnn.linear(ctx.xp.ones((1, 3), dtype="float32"), weights)
    ...     w *= 2
    ...     weights.changed()
    ...     first, ctx.dnn.linear(ctx.xp.ones((1, 3), dtype="float32"), weights)
    (array([[3., 3.]], dtype=float32), array([[6., 6.]], dtype=float32))
    """

    __slots__ = ("__weakref__", "_context", "_packed", "array", "version")

    def __init__(self, ctx: Context, array: Any) -> None:
        if getattr(array, "requires_grad", False):
            raise ArgumentError.of("w", "a tensor that requires grad", "w.detach(), as packed weights have no gradient")
        self._context = weakref.ref(ctx)
        self.array, self.version = array, 0
        self._packed: dict[Packing, tuple[int, Any]] = {}  # version, bytes
        ctx.own_stream.runtime.workspaces.add(self)  # for relief, as scratch memory

    @property
    def nbytes(self) -> int:
        """Bytes of packed copies held now."""
        return sum(packing.nbytes for packing in list(self._packed))

    def changed(self) -> None:
        """Say that the array's elements are others now: the next call packs them again."""
        self.version += 1

    def trim(self, keep: int = 0) -> int:
        """Give the packed copies back if they are more than `keep` bytes; returns bytes. Running calls keep theirs."""
        nbytes = self.nbytes
        if nbytes <= keep:
            return 0
        self._packed = {}
        return nbytes

    def check_of(self, ctx: Context) -> None:
        """Refuse the weights of another context.

        Raises:
            ClosedError: it is gone.
            ArgumentError: it is not `ctx`.
        """
        owner = self._context()
        if owner is None:
            raise ClosedError("the context of these weights is gone; make new ones with ctx.dnn.weights(w)")
        if owner is not ctx:
            raise ArgumentError(f"w: got weights of {owner!r}, expected this context's; ctx.dnn.weights(w) makes them")

    def packed(self, ctx: Context, plan: Plan, number: int, plain: Any, state: Any, lease: Lease | None) -> Any:
        """Return the copy that a plan takes as its input `number`, made now where there is none of this version.

        Two threads that come first both make one, of which either is good.

        Args:
            ctx: the context that the memory is for.
            plan: for the operation with `number` packed.
            number: of the input.
            plain: the array as NumPy sees it.
            state: as for ``plan.execute``; so is `lease`.
        """
        packing = plan.packed[number]
        assert packing is not None, "plans that take it packed say how"
        version, held = self.version, self._packed
        found = held.get(packing)
        if found is not None and found[0] == version:
            return found[1]
        buffer = ctx.allocate(packing.nbytes, dtype="uint8", shape=(packing.nbytes,), label=_LABEL)
        made = buffer._unwaited().array()
        plan.pack(state, number, plain, made, lease)
        held[packing] = version, made
        return made

    def __repr__(self) -> str:
        return f"<Weights of shape {tuple(self.array.shape)}, version {self.version}, {self.nbytes} bytes packed>"


@final
class _Seen:
    __slots__ = ("ref", "sights", "version", "weights")

    def __init__(self, ref: Any, version: object) -> None:
        self.ref, self.version, self.sights = ref, version, 0
        self.weights: Weights | None = None


@final
class TensorWeights:
    """PyTorch's tensors count their changes, so that those that come again unchanged can be packed unasked.

    What PyTorch does not count is not seen: writes through ``w.data``, ``w.numpy()`` or the array below
    ``torch.from_numpy``.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._dead: deque[Any] = deque()  # an append is all that a weak reference's callback may do

    def of(self, ctx: Context, tensor: Any) -> Weights | None:
        """Return the weights that a tensor is, or None where it has changed, or was seen only once or twice."""
        try:
            version = tensor._version, tensor.data_ptr(), tensor.stride()  # the latter two: ``w.data = other``
        except (AttributeError, RuntimeError):  # no tensor, or made in inference mode, where nothing is counted
            return None
        self._forget()
        seen = self._seen.get(id(tensor))
        if seen is None or seen.ref() is not tensor:
            seen = _Seen(weakref.KeyedRef(tensor, self._dead.append, id(tensor)), version)
            self._seen[id(tensor)] = seen
        if seen.version != version:
            seen.version, seen.sights, seen.weights = version, 0, None
        seen.sights += 1
        if seen.sights < _SIGHTS:
            return None
        if seen.weights is None:
            seen.weights = Weights(ctx, tensor.detach())
        return seen.weights

    def _forget(self) -> None:
        while self._dead:
            try:
                ref = self._dead.popleft()
            except IndexError:  # another thread was faster
                return
            seen = self._seen.get(ref.key)
            if seen is not None and seen.ref is ref:
                del self._seen[ref.key]

"""What the arguments of a launch mean: what to wait for, and which memory is used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from tazza.core.arraylib import is_array, map_leaves
from tazza.core.event import Waitable, several
from tazza.core.stream import Stream, making
from tazza.core.task import Task
from tazza.errors import WrongDeviceError
from tazza.hot import Buffer

__all__ = ["Arguments"]

_SCALARS = frozenset((bool, bytes, complex, float, int, str, type(None)))


@final
class Arguments:
    """The arguments of one launch on a context, sorted and checked.

    Attributes:
        needs: events and tasks that the stream waits for, by itself where it can.
        host_needs: tasks whose results lie in another memory domain; only the host knows their shapes.
        buffers: the memory that the function gets to see.
        are_plain: the function gets the very arguments, none of which stands for something else or is copied for it.
    """

    def __init__(
        self, context: Any, stream: Stream, args: tuple[Any, ...], after: Waitable | Iterable[Waitable], label: str
    ) -> None:
        self._context, self._stream, self._label = context, stream, label
        self.needs = several(after, argument="after")
        self.host_needs: list[Waitable] = []
        self.buffers: list[Buffer] = []
        self.are_plain = True
        for argument in args:
            if map_leaves(self._sort, argument) is not None:  # a container; leaves give None
                self.are_plain = False
        for need in (*self.needs, *self.host_needs):
            need.check_use()
            if need.captured is not None:
                need.captured.admit(stream, need)

    def _sort(self, leaf: Any) -> None:
        kind = type(leaf)
        if kind in _SCALARS:
            return
        if kind is Task:
            self.are_plain = False
            self._sort_task(leaf)
        elif kind is Buffer:
            self.are_plain = False
            leaf._check()
            if leaf.device.memory_domain != self._context.device.memory_domain:
                raise self._wrong_device(f"memory of {leaf.device}")
            self.buffers.append(leaf)
            self.needs += making(leaf, self._stream)
        elif is_array(leaf) and not self._context.arrays.owns(leaf):
            library = type(leaf).__module__.partition(".")[0]
            raise self._wrong_device(f"a {'NumPy' if library == 'numpy' else library} array of the host")

    def _sort_task(self, task: Task) -> None:
        context = self._context
        if task.context.device.memory_domain == context.device.memory_domain:
            self.needs.append(task)
            return
        if context.spec.transfer == "disallow":
            raise WrongDeviceError(
                f"the result of {task!r} is on {task.context.device} and transfer='disallow'; "
                f"move it with ctx.asarray(task.result()) of the context on {context.device}"
            )
        self.host_needs.append(task)

    def _wrong_device(self, what: str) -> WrongDeviceError:
        return WrongDeviceError(
            f"task {self._label!r} on {self._context.device} was given {what}; "
            f"move it with ctx.asarray(x) of the context on {self._context.device}"
        )

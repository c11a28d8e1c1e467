"""What a launch puts together: the task, its frame, and the submission that runs the function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from tazza.core.arguments import Arguments
from tazza.core.event import Waitable
from tazza.core.kernel import Accesses, buffers_of
from tazza.core.scope import flattened
from tazza.core.stream import Stream
from tazza.core.task import Task, TaskSubmission
from tazza.hot import Frame, frame_of, point, top
from tazza.hot.hooks import Operation, emit

__all__ = ["launched", "running_task"]


def running_task() -> Task | None:
    """The task that the calling thread runs, or None."""
    frame = top()
    return None if frame is None else cast("Task | None", frame.task)


def launched(
    context: Any,
    target: Stream,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    after: Waitable | Iterable[Waitable],
    label: str | None,
    said: Accesses | None,
) -> Task:
    """Submit a function to a stream of a context; see `Context.launch`."""
    frame, outer = frame_of(context), running_task()
    name = label or str(getattr(function, "__qualname__", type(function).__name__))
    sorted_args = Arguments(context, target, args, after, name)
    task = Task(context, target, name, context.next_key(outer), outer if target.is_inline else None)
    account = context.account if frame is None or frame.account is None else frame.account
    submission = TaskSubmission(
        task,
        Frame(task, context, target, account, task, top() if target.is_inline else flattened(top())),
        function,
        args,
        needs=tuple(sorted_args.needs),
        host_needs=tuple(sorted_args.host_needs),
        plain=sorted_args.are_plain,
    )
    if point.listeners is not None:
        read, written = buffers_of(function, args, said)
        emit(Operation("launch", stream=target, label=name, reads=read, writes=written, subject=task))
    target.submit(submission)
    if not target.is_inline:
        for buffer in sorted_args.buffers:
            buffer.used_on(target)
    return task

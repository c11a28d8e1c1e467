from typing import TypeVar

__all__ = ["instances_of"]

T = TypeVar("T")

def instances_of(cls: type[T]) -> list[T]: ...

from typing import TypeVar

__all__ = ["instances_of"]

_T = TypeVar("_T")

def instances_of(cls: type[_T]) -> list[_T]: ...

# cython: language_level=3
"""The live objects of a class, found without letting another thread run meanwhile.

``gc.get_objects()`` alone is dangerous where there are other threads: its list refers to tuples that they are still
filling, and ``tuple(iterator)`` in such a thread then fails with a SystemError, as it may only resize a tuple that
nobody else knows (https://github.com/python/cpython/issues/59313). Here the list is gone before anybody else runs: what
is between is compiled and calls no Python code.
"""

from __future__ import annotations

from cpython.object cimport PyTypeObject
from cpython.ref cimport PyObject

import gc

from tazza.errors import ArgumentError

__all__ = ["instances_of"]

cdef extern from "Python.h":
    PyTypeObject *Py_TYPE(object)
    int PyType_IsSubtype(PyTypeObject *kind, PyTypeObject *parent)

cdef object get_objects = gc.get_objects


def instances_of(cls):
    """Return the objects of a class, or of one derived from it, that the garbage collector knows."""
    if not isinstance(cls, type):
        raise ArgumentError.of("cls", cls, "a class")
    cdef list found = []
    cdef list everything
    cdef PyTypeObject *parent = <PyTypeObject *>cls
    gc_was_enabled = gc.isenabled()
    gc.disable()  # a collection would run finalisers, and with them other threads
    try:
        everything = get_objects()
        for each in everything:
            if PyType_IsSubtype(Py_TYPE(each), parent):
                found.append(each)
        each = None
        everything = None
    finally:
        if gc_was_enabled:
            gc.enable()
    return found

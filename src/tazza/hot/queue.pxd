cimport cython

from tazza.hot.event cimport EventCore, Placement
from tazza.hot.hooks cimport Point


cdef class QueueCore:
    cdef public object driver
    cdef public object device
    cdef public object handle
    cdef public Py_ssize_t submitted
    cdef public bint closed
    cdef public Py_ssize_t _limit
    cdef public Py_ssize_t _stride
    cdef public object _lock
    cdef public Py_ssize_t _deferred
    cdef public Py_ssize_t _reached
    cdef public dict _preparing

    @cython.locals(number=Py_ssize_t, end=Placement)
    cpdef bint record_now(self, EventCore event) except? -1
    @cython.locals(number=Py_ssize_t, end=Placement)
    cpdef bint wait_now(self, EventCore need) except? -1
    cdef bint _is_open_road(self) except? -1
    cdef bint _is_own(self, Placement end) except? -1
    cpdef bint _must_wait(self, EventCore need, Placement end) except? -1
    @cython.locals(queue=QueueCore)
    cdef bint _has_passed(self, EventCore need) except? -1

cdef Point point

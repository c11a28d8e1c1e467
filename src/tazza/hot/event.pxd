cimport cython

from tazza.hot.process cimport Process


@cython.final
cdef class Latch:
    cdef public bint is_set
    cdef public object outcome
    cdef public object lock
    cdef tuple _listeners


@cython.final
cdef class Placement:
    cdef public object driver
    cdef public object device
    cdef public object handle
    cdef public object capture
    cdef object __weakref__
    cdef long _generation


cdef class EventCore:
    cdef public Latch _done
    cdef public Latch _placed
    cdef public Placement placement
    cdef public object stream
    cdef public Py_ssize_t number
    cdef public bint timed
    cdef public bint _watched
    cdef public long long _time_ns
    cdef public long _generation
    cdef object __weakref__

cdef Process process

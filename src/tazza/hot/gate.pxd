cimport cython

from tazza.hot.frame cimport Frame, top


@cython.final
cdef class Gate:
    cdef object _owner
    cdef object _name
    cdef object _lock
    cdef object _empty
    cdef Py_ssize_t _inside
    cdef bint _shut
    cdef bint _closed

    @cython.locals(frame=Frame)
    cdef bint _is_nested(self) except? -1

cdef bint LOCKED

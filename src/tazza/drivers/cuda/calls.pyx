# cython: language_level=3
"""The calls that streams make all the time, by address: the compiled form of `_calls`, the same class.

Around each the device's context is made current and the caller's is put back, all three in one stretch without the
interpreter's lock, which other threads may want while a call waits in the driver.
"""

from __future__ import annotations

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

__all__ = ["StreamCalls"]

ctypedef int (*Push)(void *context) noexcept nogil
ctypedef int (*Pop)(void **context) noexcept nogil
ctypedef int (*Record)(void *event, void *stream) noexcept nogil
ctypedef int (*Wait)(void *stream, void *event, unsigned int flags) noexcept nogil
ctypedef int (*Query)(void *event) noexcept nogil
ctypedef int (*Copy)(uint64_t dst, uint64_t src, size_t nbytes, void *stream) noexcept nogil
ctypedef int (*Fill)(uint64_t dst, unsigned char value, size_t nbytes, void *stream) noexcept nogil
ctypedef int (*Launch)(
    void *function,
    unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
    unsigned int block_x, unsigned int block_y, unsigned int block_z,
    unsigned int shared_bytes, void *stream, void **arguments, void **extra,
) noexcept nogil


cdef class StreamCalls:
    cdef void *_context
    cdef Push _push
    cdef Pop _pop
    cdef Record _record
    cdef Wait _wait
    cdef Query _query
    cdef Copy _copy
    cdef Fill _fill
    cdef Launch _launch

    def __init__(self, tuple addresses, uintptr_t context):
        self._context = <void *>context
        self._push = <Push><uintptr_t>addresses[0]
        self._pop = <Pop><uintptr_t>addresses[1]
        self._record = <Record><uintptr_t>addresses[2]
        self._wait = <Wait><uintptr_t>addresses[3]
        self._query = <Query><uintptr_t>addresses[4]
        self._copy = <Copy><uintptr_t>addresses[5]
        self._fill = <Fill><uintptr_t>addresses[6]
        self._launch = <Launch><uintptr_t>addresses[7]

    def record(self, uintptr_t event, uintptr_t stream):
        cdef void *before
        cdef int pushed, status = 0, popped = 0
        with nogil:
            pushed = self._push(self._context)
            if not pushed:
                status = self._record(<void *>event, <void *>stream)
                popped = self._pop(&before)
        return _answer(pushed, status, popped)

    def wait(self, uintptr_t stream, uintptr_t event):
        cdef void *before
        cdef int pushed, status = 0, popped = 0
        with nogil:
            pushed = self._push(self._context)
            if not pushed:
                status = self._wait(<void *>stream, <void *>event, 0)
                popped = self._pop(&before)
        return _answer(pushed, status, popped)

    def query(self, uintptr_t event):
        cdef void *before
        cdef int pushed, status = 0, popped = 0
        with nogil:
            pushed = self._push(self._context)
            if not pushed:
                status = self._query(<void *>event)
                popped = self._pop(&before)
        return _answer(pushed, status, popped)

    def copy(self, uint64_t dst, uint64_t src, size_t nbytes, uintptr_t stream):
        cdef void *before
        cdef int pushed, status = 0, popped = 0
        with nogil:
            pushed = self._push(self._context)
            if not pushed:
                status = self._copy(dst, src, nbytes, <void *>stream)
                popped = self._pop(&before)
        return _answer(pushed, status, popped)

    def fill(self, uint64_t dst, unsigned char value, size_t nbytes, uintptr_t stream):
        cdef void *before
        cdef int pushed, status = 0, popped = 0
        with nogil:
            pushed = self._push(self._context)
            if not pushed:
                status = self._fill(dst, value, nbytes, <void *>stream)
                popped = self._pop(&before)
        return _answer(pushed, status, popped)

    def launch(self, uintptr_t function, tuple shape, uintptr_t stream, tuple arguments):
        cdef void *before
        cdef unsigned int x, y, z, bx, by, bz, shared
        cdef int pushed, status = 0, popped = 0
        cdef Py_ssize_t i, count = len(arguments)
        x, y, z, bx, by, bz, shared = shape
        cdef void **values = <void **>malloc((count + 1) * sizeof(void *))
        if values is NULL:
            raise MemoryError
        try:
            for i in range(count):
                values[i] = PyBytes_AS_STRING(<bytes?>arguments[i])
            with nogil:
                pushed = self._push(self._context)
                if not pushed:
                    status = self._launch(
                        <void *>function, x, y, z, bx, by, bz, shared, <void *>stream, values, NULL
                    )
                    popped = self._pop(&before)
        finally:
            free(values)
        return _answer(pushed, status, popped)


cdef object _answer(int pushed, int status, int popped):
    return (pushed, status, popped) if pushed or status or popped else None

cimport cython

from tazza.hot.account cimport Account


@cython.final
cdef class Block:
    cdef public size_t address
    cdef public Py_ssize_t nbytes
    cdef public Py_ssize_t requested
    cdef public unsigned long thread
    cdef public object lane
    cdef public object pool
    cdef public Account account
    cdef public str label
    cdef public list users
    cdef public object made
    cdef public Block next
    cdef public bint live
    cdef public bint small
    cdef public bint island

cimport cython

from tazza.hot.process cimport Process


@cython.final
cdef class Account:
    cdef public str name
    cdef public Account parent
    cdef public object pool
    cdef public bint hosted
    cdef public double patience
    cdef public Py_ssize_t reserve
    cdef public Py_ssize_t cap
    cdef public Py_ssize_t live
    cdef public Py_ssize_t peak
    cdef public Py_ssize_t requested
    cdef public Py_ssize_t blocks
    cdef public Py_ssize_t allocations
    cdef public Py_ssize_t total_allocated
    cdef public Py_ssize_t ooms

    cpdef Account charge(self, Py_ssize_t nbytes, Py_ssize_t requested)
    cpdef uncharge(self, Py_ssize_t nbytes, Py_ssize_t requested)
    cpdef Account resize(self, Py_ssize_t nbytes)
    @cython.locals(account=Account)
    cpdef Account refuses(self, Py_ssize_t nbytes)
    cdef Account _resize(self, Py_ssize_t nbytes)
    @cython.locals(more=Py_ssize_t, refused=Account)
    cdef Account _set_aside(self, Py_ssize_t nbytes)
    @cython.locals(account=Account, rest=Py_ssize_t)
    cdef Account _charge(self, Py_ssize_t nbytes, Py_ssize_t requested, int blocks)
    @cython.locals(account=Account)
    cdef _uncharge(self, Py_ssize_t nbytes, Py_ssize_t requested, int blocks, Account last)

cdef Py_ssize_t _above(Py_ssize_t live, Py_ssize_t reserve) noexcept

cdef bint LOCKED

cdef Process process

cimport cython

from tazza.hot.process cimport Process


@cython.final
cdef class Account:
    cdef public str name
    cdef public Account parent
    cdef public Py_ssize_t cap
    cdef public Py_ssize_t live
    cdef public Py_ssize_t peak
    cdef public Py_ssize_t requested
    cdef public Py_ssize_t blocks
    cdef public Py_ssize_t allocations
    cdef public Py_ssize_t total_allocated
    cdef public Py_ssize_t total_freed
    cdef public Py_ssize_t ooms

    cpdef Account charge(self, Py_ssize_t nbytes, Py_ssize_t requested)
    cpdef uncharge(self, Py_ssize_t nbytes, Py_ssize_t requested)
    cpdef Account refuses(self, Py_ssize_t nbytes)
    @cython.locals(account=Account)
    cdef Account _charge(self, Py_ssize_t nbytes, Py_ssize_t requested)
    @cython.locals(account=Account)
    cdef _back_out(self, Account last, Py_ssize_t nbytes)
    @cython.locals(account=Account)
    cdef _uncharge(self, Py_ssize_t nbytes, Py_ssize_t requested)

cdef bint LOCKED

cdef Process process

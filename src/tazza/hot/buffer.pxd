cimport cython

from tazza.hot cimport _native
from tazza.hot.block cimport Block
from tazza.hot.pool cimport Pool
from tazza.hot.process cimport Process


@cython.final
cdef class Buffer:
    cdef readonly Block block
    cdef readonly Buffer base
    cdef readonly size_t address
    cdef readonly Py_ssize_t nbytes
    cdef readonly object dtype
    cdef readonly bint readonly
    cdef tuple _shape
    cdef tuple _strides
    cdef long generation
    cdef bint _closed
    cdef bint _exported
    cdef bint _owned
    cdef object _watch
    cdef object __weakref__

    cpdef _check(self)
    cdef _fill(self, Block block)
    @cython.locals(block=Block, pool=Pool)
    cdef _let_go(self)
    @cython.locals(part=Buffer)
    cdef bint _gone(self)
    @cython.locals(part=Buffer)
    cpdef bint _is_lent(self)
    @cython.locals(root=Buffer)
    cpdef _unwaited(self)

@cython.locals(buffer=Buffer)
cpdef Buffer make_buffer(Block block)

cdef Process process

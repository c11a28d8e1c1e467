cimport cython

from tazza.hot.block cimport Block
from tazza.hot.heap cimport Heap
from tazza.hot.process cimport Process


@cython.final
cdef class Lane:
    cdef public object pool
    cdef public dict blocks
    cdef public Heap small
    cdef public Heap large
    cdef public bint busy
    cdef public list stacks
    cdef public Block kept
    cdef public size_t again
    cdef public Py_ssize_t again_at
    cdef public Py_ssize_t stacked_nbytes
    cdef public int shift
    cdef public bint shared
    cdef public bint closed
    cdef public object home
    cdef public Lane heir
    cdef public Py_ssize_t freed_at

    @cython.locals(index=Py_ssize_t, block=Block)
    cpdef Block pop(self, Py_ssize_t nbytes)
    @cython.locals(index=Py_ssize_t)
    cpdef bint push(self, Block block)
    @cython.locals(lane=Lane)
    cpdef Lane current(self)
    @cython.locals(number=Py_ssize_t)
    cpdef stamp(self)
    cpdef settled(self, Py_ssize_t number)
    @cython.locals(heap=Heap, address=Py_ssize_t)
    cpdef Py_ssize_t carve(self, Py_ssize_t nbytes, bint small) except? -2
    @cython.locals(heap=Heap)
    cpdef bint restore(self, Block block) except? -1
    @cython.locals(heap=Heap)
    cpdef bint enlist(self, object address, Py_ssize_t nbytes, Py_ssize_t granted, bint small) except? -1
    @cython.locals(apart=Lane, heap=Heap, target=Heap)
    cpdef Lane withdraw(self, object wanted)
    cpdef bint inherit(self, Lane other) except? -1
    cpdef unstack(self)
    @cython.locals(best=cython.bint)
    cdef bint _is_best(self, Block block) except? -1
    @cython.locals(block=Block)
    cdef _free_kept(self)
    @cython.locals(block=Block, index=Py_ssize_t)
    cdef _empty_stacks(self)


cdef class StreamCore:
    cdef public Lane lane
    cdef public Lane arena
    cdef object __weakref__
    cdef public long generation
    cdef public unsigned long captor

cdef Py_ssize_t STACKED

cdef Process process

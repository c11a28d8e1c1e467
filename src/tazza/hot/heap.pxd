cimport cython


@cython.final
cdef class Heap:
    cdef public dict segments
    cdef public Py_ssize_t free_nbytes
    cdef public Py_ssize_t changes
    cdef object _split
    cdef dict _free
    cdef dict _ends
    cdef list _idle
    cdef list _sizes
    cdef dict _bins
    cdef Py_ssize_t _entries

    cpdef object allocate(self, object nbytes)
    cpdef free(self, object address, object nbytes)
    @cython.locals(position=Py_ssize_t)
    cpdef bint would_return(self, object address, object nbytes) except? -1
    cpdef add(self, object address, object nbytes)
    cpdef object idle_segment(self, object wanted)
    cpdef object remove(self, object address)
    cpdef absorb(self, Heap other)
    @cython.locals(sizes=list, chunks=list, position=Py_ssize_t)
    cdef object _smallest_chunk(self, object nbytes)
    @cython.locals(position=Py_ssize_t)
    cdef object _smallest_idle(self, object nbytes)
    @cython.locals(chunks=list)
    cdef _insert(self, object address, object nbytes)
    cdef _remove(self, object address, object nbytes)

cdef class Process:
    cdef public long generation
    cdef public object lock
    cdef public tuple waiters

cpdef long generation()
cpdef wake()

cdef class Process:
    cdef public long generation
    cdef public object lock

cpdef long generation()

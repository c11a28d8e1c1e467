cdef class Point:
    cdef public tuple listeners

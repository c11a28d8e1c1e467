ctypedef Py_buffer* BufferView

cdef extern from "Python.h":
    int get_buffer "PyObject_GetBuffer"(object exporter, Py_buffer *view, int flags) except -1

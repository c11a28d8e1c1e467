ctypedef Py_buffer* BufferView

cdef extern from "Python.h":
    int get_buffer "PyObject_GetBuffer"(object exporter, Py_buffer *view, int flags) except -1
    object set_variable "PyContextVar_Set"(object variable, object value)
    int reset_variable "PyContextVar_Reset"(object variable, object token) except -1

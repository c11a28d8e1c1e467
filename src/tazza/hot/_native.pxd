from cpython.ref cimport Py_DECREF, PyObject

ctypedef Py_buffer* BufferView
ctypedef int (*Entry)() except -1

cdef extern from "pythread.h":
    unsigned long thread_ident "PyThread_get_thread_ident"()

cdef extern from "Python.h":
    int get_buffer "PyObject_GetBuffer"(object exporter, Py_buffer *view, int flags) except -1
    object set_variable "PyContextVar_Set"(object variable, object value)
    int reset_variable "PyContextVar_Reset"(object variable, object token) except -1

cdef extern from "Python.h":
    int _get_variable "PyContextVar_Get"(object variable, PyObject *default, PyObject **value) except -1

cdef inline object get_variable(object variable):
    cdef PyObject *value = NULL
    _get_variable(variable, NULL, &value)
    result = <object>value
    Py_DECREF(result)  # it came with a reference of its own
    return result

cdef inline Entry no_entry() noexcept:
    return NULL

cdef inline int call_entry(Entry entry) except -1:
    return 0 if entry is NULL else entry()

cimport cython

from tazza.hot cimport _native
from tazza.hot.process cimport Process


@cython.final
cdef class Frame:
    cdef readonly object owner
    cdef readonly object context
    cdef readonly object stream
    cdef readonly object account
    cdef readonly object task
    cdef readonly Frame parent
    cdef readonly long generation
    cdef public object token
    cdef object __weakref__


cdef class Default:
    cdef public Frame frame
    cdef _native.Entry first_entry


cdef class Scope:
    pass

@cython.locals(frame=Frame)
cpdef Frame make_frame(object owner, object context, object stream, object account, object task, Frame parent)

cdef object _set
cdef object _current
cdef Default _default

@cython.locals(frame=Frame)
cpdef Frame top()
@cython.locals(frame=Frame)
cpdef current()
@cython.locals(frame=Frame, fallback=Frame)
cpdef Frame frame_of(object context)
cdef set_first_entry(_native.Entry entry)
cpdef _push(Frame frame)
@cython.locals(frame=Frame)
cpdef _pop(Scope scope)

cdef Process process

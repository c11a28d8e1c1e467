cimport cython

from tazza.hot.account cimport Account
from tazza.hot.buffer cimport Buffer, make_buffer
from tazza.hot.frame cimport Frame, Scope, _pop, _push, frame_of, make_frame, top
from tazza.hot.hooks cimport Point
from tazza.hot.lane cimport Lane, StreamCore
from tazza.hot.pool cimport Pool
from tazza.hot.process cimport Process


cdef class ContextCore(Scope):
    cdef public StreamCore stream0
    cdef public Account account
    cdef public Pool pool
    cdef public Lane task_lane
    cdef public bint task_enqueues
    cdef public int phase
    cdef public long generation

    @cython.locals(stream=StreamCore, account=Account, frame=Frame, lane=Lane, pool=Pool, buffer=Buffer)
    cdef Buffer _take(self, Py_ssize_t nbytes, str label)
    @cython.locals(inner=Frame, task=object)
    cdef Frame _own_frame(self, Frame parent)
    cpdef Frame _frame(self, Frame parent)

cdef Buffer _typed(Buffer buffer, object dtype, object layout)

cdef Process process
cdef Point point
cdef Py_ssize_t LARGEST

@cython.locals(size=Py_ssize_t)
cdef Py_ssize_t _size(object nbytes) except -1

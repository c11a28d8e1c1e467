cimport cython

from tazza.hot.account cimport Account
from tazza.hot.block cimport Block
from tazza.hot.hooks cimport Point
from tazza.hot.lane cimport Lane
from tazza.hot cimport _native
from tazza.hot.process cimport Process, wake


@cython.final
cdef class Pool:
    cdef public object source
    cdef public bint cached
    cdef public Py_ssize_t alignment
    cdef public int shift
    cdef public long generation
    cdef public object owner
    cdef public bint exact
    cdef public Block given
    cdef public list appended
    cdef public list slow
    cdef public object limbo
    cdef public list lanes
    cdef public list closing
    cdef public dict blocks
    cdef public Py_ssize_t live
    cdef public Py_ssize_t live_peak
    cdef public Py_ssize_t reserved
    cdef public Py_ssize_t reserved_peak
    cdef public Py_ssize_t retries
    cdef set _pollers

    @cython.locals(block=Block)
    cpdef Block take(self, Py_ssize_t requested, Lane lane, Account account, str label=*)
    cpdef give(self, Block block)
    cdef Block _try(self, Py_ssize_t requested, Lane lane, Account account)
    @cython.locals(granted=Py_ssize_t, block=Block)
    cdef Block _serve(self, Py_ssize_t requested, Lane lane, Account account)
    cdef Block _hand_out(self, Block block, Py_ssize_t requested, Account account)
    @cython.locals(block=Block, address=Py_ssize_t, small=cython.bint)
    cdef Block _carve(self, Py_ssize_t granted, Lane lane)
    @cython.locals(lane=Lane)
    cdef bint _shelve(self, Block block) except? -1
    cdef _settle_all(self)
    @cython.locals(block=Block)
    cdef _settle(self)
    @cython.locals(lane=Lane)
    cdef bint _recycle(self, Block block) except? -1
    @cython.locals(account=Account)
    cdef _count_out(self, Block block)
    @cython.locals(block=Block)
    cdef Block _reuse(self, Py_ssize_t requested, Lane lane, Account account)
    @cython.locals(number=Py_ssize_t)
    cdef _order(self, Block block, Lane lane)

cdef bint LOCKED

cdef Process process
cdef Point point

# cython: language_level=3
"""NumPy's allocation handler: arrays that NumPy makes inside `with ctx:` count in the account that is current there.

NumPy asks a handler, kept in a ContextVar of its own, for every array's memory (NEP 49,
https://numpy.org/neps/nep-0049-data-allocation-strategies.html). Ours takes it from NumPy's default handler, so that
its cache and its use of large pages stay, with a header in front that names the account and links the block into the
list of live ones. Each array remembers the handler that allocated it: it is freed right after the scope and in any
thread.

NumPy calls a handler with the GIL held. As in the rest of the compiled hot path, what calls no Python code cannot be
interrupted; builds without a GIL take the process's lock. The refusal of an account leads to relief, which may run any
Python code: the array that is being made is not visible to it yet.

What does not work: raising here. A handler can only return NULL, whereupon NumPy raises its own MemoryError; the
explanation is kept for the thread (`refusal`), and leaving the scope raises it.
"""

from __future__ import annotations

cimport cython
from cpython.exc cimport PyErr_Fetch, PyErr_Restore, PyErr_SetInterrupt
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint8_t
from libc.stdlib cimport free as c_free
from libc.stdlib cimport malloc as c_malloc
from libc.string cimport memcpy, memset

from tazza.hot cimport _native
from tazza.hot.account cimport Account
from tazza.hot.frame cimport Frame, set_first_entry, top
from tazza.hot.hooks cimport Point
from tazza.hot.process cimport Process, wake

from collections import deque

from tazza.errors import CleanupWarning
from tazza.hot.block import ForeignBlock
from tazza.hot.hooks import Operation, emit, point as _point
from tazza.hot.process import locked, process as _process
from tazza.util.report import report

__all__ = ["forget_refusal", "host_blocks", "install", "refusal", "settle_frees"]

cdef extern from *:
    """
    #define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
    #define NPY_TARGET_VERSION NPY_1_22_API_VERSION
    """

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept
        void *(*calloc)(void *ctx, size_t nelem, size_t elsize) noexcept
        void *(*realloc)(void *ctx, void *ptr, size_t size) noexcept
        void (*free)(void *ctx, void *ptr, size_t size) noexcept
    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator
    int import_array "_import_array"() except -1
    object PyDataMem_SetHandler(object handler)
    object PyDataMem_GetHandler()
    PyObject *PyDataMem_DefaultHandler


cdef struct Header:
    PyObject *account  # owned; NULL where nothing was charged
    Header *previous
    Header *next
    size_t nbytes
    unsigned long thread
    size_t gap  # bytes from where the default handler's block begins to NumPy's data
    size_t unused[2]  # NumPy's data keeps the alignment that the default handler gives


cdef size_t HEADER = sizeof(Header)
cdef size_t PAGE = 4096
# From this size on the data lies a page behind, not a header behind, where the default handler would have put it. Large
# arrays begin at one and the same place of a page; a result that began 64 bytes behind its operands would have each of
# its stores take the loads 64 bytes ahead for dependent ("4 KiB aliasing": element-wise sums were 12 % slower).
cdef size_t LARGE = 65536
cdef size_t MOST = 4611686018427387904  # as `tazza.memory.sizing.LARGEST`

cdef Process process = _process
cdef Point point = _point
cdef bint LOCKED = locked(__file__)
cdef Header live  # the ring of charged blocks
cdef size_t live_count = 0
cdef PyDataMem_Handler *base = NULL
cdef PyDataMem_Handler ours
cdef object capsule = None
cdef object freed = deque()  # what the listeners have not been told yet
cdef dict refusals = {}  # the last refusal of each thread: the error, and the account that was asked
cdef set unanswered = set()  # the threads in which no array was made since

live.previous = live.next = &live


cdef Account _charged():
    """The account that an array made here counts in, or None: that of the innermost frame on the host."""
    cdef Frame frame = top()
    cdef object account
    while frame is not None:
        account = frame.account
        if type(account) is Account and (<Account>account).hosted:
            return <Account>account
        frame = frame.parent
    return None


cdef inline bint _charge(Account account, size_t nbytes) noexcept:
    """Count an array; False where a limit refuses it."""
    if LOCKED:
        return account.charge(nbytes, nbytes) is None
    return account._charge(nbytes, nbytes, 1) is None


cdef inline void _uncharge(Account account, size_t nbytes) noexcept:
    if LOCKED:
        account.uncharge(nbytes, nbytes)
    else:
        account._uncharge(nbytes, nbytes, 1, None)


cdef void _link(Header *header, Account account, size_t nbytes) noexcept:
    global live_count
    header.nbytes = nbytes
    if account is None:
        header.account = NULL
        return
    Py_INCREF(account)
    header.account = <PyObject *>account
    header.thread = _native.thread_ident()
    if LOCKED:
        process.lock.acquire()
    header.next = live.next
    header.previous = &live
    live.next.previous = header
    live.next = header
    live_count += 1
    if LOCKED:
        process.lock.release()


cdef void _unlink(Header *header) noexcept:
    global live_count
    if LOCKED:
        process.lock.acquire()
    header.previous.next = header.next
    header.next.previous = header.previous
    live_count -= 1
    if LOCKED:
        process.lock.release()


cdef void *_take(size_t nbytes, bint zero) noexcept:
    cdef Account account = _charged()
    cdef size_t gap = PAGE if nbytes >= LARGE else HEADER
    cdef char *start
    cdef Header *header
    if nbytes > MOST:
        return NULL
    if account is not None and not _charge(account, nbytes):
        if not _relieved(account, nbytes, False):
            return NULL
    if zero:
        start = <char *>base.allocator.calloc(base.allocator.ctx, 1, nbytes + gap)
    else:
        start = <char *>base.allocator.malloc(base.allocator.ctx, nbytes + gap)
    if start is NULL:
        if account is not None:
            _uncharge(account, nbytes)
        return NULL
    if unanswered:
        unanswered.discard(_native.thread_ident())
    header = (<Header *>(start + gap)) - 1
    header.gap = gap
    _link(header, account, nbytes)
    if account is not None and point.listeners is not None:
        _tell(<size_t>(header + 1), nbytes, account)
    return <void *>(header + 1)


cdef void *_malloc(void *ctx, size_t nbytes) noexcept:
    return _take(nbytes, False)


cdef void *_calloc(void *ctx, size_t count, size_t size) noexcept:
    if size and count > MOST // size:
        return NULL
    return _take(count * size, True)


cdef void *_realloc(void *ctx, void *pointer, size_t nbytes) noexcept:
    cdef Header *header
    cdef Account account
    cdef size_t before, gap
    cdef char *moved
    cdef Py_ssize_t more
    if pointer is NULL:
        return _take(nbytes, False)
    if nbytes > MOST:
        return NULL
    header = (<Header *>pointer) - 1
    before, gap = header.nbytes, header.gap
    more = <Py_ssize_t>nbytes - <Py_ssize_t>before
    account = None if header.account is NULL else <Account><object>header.account
    if account is not None and account.resize(more) is not None:
        if not _relieved(account, more, True):
            return NULL
    if account is not None:
        _unlink(header)  # the block may move
    moved = <char *>base.allocator.realloc(base.allocator.ctx, <char *>pointer - gap, nbytes + gap)
    if moved is NULL:
        if account is not None:
            account.resize(-more)
            _relink(header, account, before)
        return NULL
    header = (<Header *>(moved + gap)) - 1
    if account is not None:
        _relink(header, account, nbytes)
        if point.listeners is not None:
            _leave_word(<size_t>pointer, before, account)
            _tell(<size_t>(header + 1), nbytes, account)
    else:
        header.nbytes = nbytes
    return <void *>(header + 1)


cdef void _leave_word(size_t address, size_t nbytes, Account account) noexcept:
    """Let listeners and waiters know of a free, later; NumPy frees while an exception is set, too, which stays set."""
    cdef PyObject *kind
    cdef PyObject *value
    cdef PyObject *trace
    PyErr_Fetch(&kind, &value, &trace)
    try:
        if point.listeners is not None:
            freed.append((address, nbytes, account))
        if process.waiters is not None:
            wake()
    except MemoryError as error:  # a listener misses an event, or a waiter looks a little later by itself
        report("the end of an array could not be told", CleanupWarning, error=error)
    finally:
        PyErr_Restore(kind, value, trace)


cdef void _relink(Header *header, Account account, size_t nbytes) noexcept:
    _link(header, account, nbytes)
    Py_DECREF(account)  # it was counted before


cdef void _free(void *ctx, void *pointer, size_t nbytes) noexcept:
    cdef Header *header
    cdef Account account
    cdef size_t gap
    if pointer is NULL:
        return
    header = (<Header *>pointer) - 1
    nbytes = header.nbytes
    if header.account is not NULL:
        account = <Account><object>header.account
        _unlink(header)
        _uncharge(account, nbytes)
        if point.listeners is not None or process.waiters is not None:
            _leave_word(<size_t>pointer, nbytes, account)
        Py_DECREF(account)
    gap = header.gap
    base.allocator.free(base.allocator.ctx, <char *>pointer - gap, nbytes + gap)


cdef bint _relieved(Account account, Py_ssize_t nbytes, bint resize) noexcept:
    """Work down the order of relief until the account takes `nbytes`; an exception that is set stays set."""
    cdef PyObject *kind
    cdef PyObject *value
    cdef PyObject *trace
    PyErr_Fetch(&kind, &value, &trace)
    try:
        return _relieve(account, nbytes, resize)
    except KeyboardInterrupt:  # nothing can be raised here: it is raised again as soon as Python code runs
        PyErr_SetInterrupt()
        return False
    except BaseException as error:  # the same: the array is refused, and the reason reported
        report("relief failed while NumPy allocated", CleanupWarning, error=error)
        return False
    finally:
        PyErr_Restore(kind, value, trace)


cdef bint _relieve(Account account, Py_ssize_t nbytes, bint resize) except -1:
    cdef int attempt = 0
    cdef Account refused
    source = None if account.pool is None else account.pool.source
    while True:
        refused = account.resize(nbytes) if resize else account.charge(nbytes, nbytes)
        if refused is None:
            return True
        if source is None:
            return False
        if not source.relieve(nbytes, refused, attempt):
            refusals[_native.thread_ident()] = source.exhausted(nbytes, refused, account), account
            unanswered.add(_native.thread_ident())
            return False
        attempt += 1


cdef void _tell(size_t address, size_t nbytes, Account account) noexcept:
    cdef PyObject *kind
    cdef PyObject *value
    cdef PyObject *trace
    PyErr_Fetch(&kind, &value, &trace)
    try:
        settle_frees()
        block = ForeignBlock(address, nbytes, account, _native.thread_ident(), "numpy")
        emit(Operation("allocate", None, None, nbytes, (), (), block))
    except Exception as error:  # a recording misses an event, the allocation goes on
        report("an allocation of NumPy could not be recorded", CleanupWarning, error=error)
    finally:
        PyErr_Restore(kind, value, trace)


def settle_frees():
    """Tell the listeners of arrays that were freed since the last allocation; a finaliser only left them in a list."""
    while freed:
        try:
            address, nbytes, account = freed.popleft()
        except IndexError:  # another thread took it
            return
        emit(Operation("free", None, None, nbytes, (), (), ForeignBlock(address, nbytes, account, 0, "numpy")))


def refusal():
    """Return why NumPy was refused memory in this thread last, or None: error, account, and whether nothing came since."""
    thread = _native.thread_ident()
    kept = refusals.get(thread)
    return None if kept is None else (*kept, thread in unanswered)


def forget_refusal():
    """Let go of what `refusal` returns: it was told."""
    refusals.pop(_native.thread_ident(), None)
    unanswered.discard(_native.thread_ident())


def host_blocks():
    """Return the live arrays' memory that NumPy allocated inside contexts, as `ForeignBlock`."""
    # Copied in one go, without Python objects: making those may run a finaliser that frees an array.
    cdef size_t count = live_count
    cdef size_t index = 0
    cdef Header *header
    cdef Header *copies = <Header *>c_malloc((count + 1) * sizeof(Header))
    if copies is NULL:
        raise MemoryError("no memory for the list of arrays")
    if LOCKED:
        process.lock.acquire()
    header = live.next
    while header is not &live and index < count:
        copies[index] = header[0]
        copies[index].next = header + 1
        Py_INCREF(<object>header.account)
        header = header.next
        index += 1
    if LOCKED:
        process.lock.release()
    try:
        return [
            ForeignBlock(
                <size_t>copies[i].next, copies[i].nbytes, <Account><object>copies[i].account, copies[i].thread, "numpy"
            )
            for i in range(index)
        ]
    finally:
        for i in range(index):
            Py_DECREF(<object>copies[i].account)
        c_free(copies)


cdef int _first_entry() except -1:
    """Install the handler in this Python context, unless somebody else's is there."""
    current = PyDataMem_GetHandler()
    if <PyObject *>current is PyDataMem_DefaultHandler:
        PyDataMem_SetHandler(capsule)
    return 0


def install():
    """Have every Python context get the handler with its first frame, and this one now."""
    global base, capsule
    import_array()
    base = <PyDataMem_Handler *>PyCapsule_GetPointer(<object>PyDataMem_DefaultHandler, "mem_handler")
    memset(&ours, 0, sizeof(ours))
    memcpy(ours.name, b"tazza", 6)
    ours.version = 1
    ours.allocator.malloc = _malloc
    ours.allocator.calloc = _calloc
    ours.allocator.realloc = _realloc
    ours.allocator.free = _free
    capsule = PyCapsule_New(&ours, "mem_handler", NULL)
    set_first_entry(_first_entry)

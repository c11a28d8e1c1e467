# cython: language_level=3
"""A DNN library's primitives, run one after another without the GIL: the compiled form of `_primitives`, the same class.

Setting a pointer and executing a primitive cost a microsecond and more each through ctypes, and a layer needs ten such
calls; see `_primitives` for figures.
"""

from __future__ import annotations

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, intptr_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from tazza.errors import UsageError

__all__ = ["PrimitiveSequence", "call_key"]

cdef extern from *:
    """
    #define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
    #define NPY_TARGET_VERSION NPY_1_22_API_VERSION
    """

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject:
        pass
    void *PyArray_DATA(PyArrayObject *array)
    int PyArray_NDIM(PyArrayObject *array)
    intptr_t *PyArray_DIMS(PyArrayObject *array)
    intptr_t *PyArray_STRIDES(PyArrayObject *array)
    int PyArray_TYPE(PyArrayObject *array)
    PyObject *PyArray_DESCR(PyArrayObject *array)
    bint PyArray_ISNOTSWAPPED(PyArrayObject *array)

ctypedef int (*Execute)(void *primitive, void *stream, int count, void *arguments) noexcept nogil
ctypedef int (*SetHandle)(void *memory, void *data) noexcept nogil
ctypedef int (*GetThreads)() noexcept nogil
ctypedef void (*SetThreads)(int count) noexcept nogil

cdef struct Slot:
    void *memory
    int64_t array  # number of the array that it lies in; -1: in the scratch memory
    int64_t offset

cdef struct Argument:  # as the library lays it out
    int32_t name
    void *memory

cdef struct Step:
    void *primitive
    int32_t count
    Argument *arguments

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef object ndarray = np.ndarray


def call_key(bytes kind, list arrays, tuple options, int64_t more):
    # One string: a tuple of tuples takes as long to make, to hash and to compare as all else between call and library.
    cdef Py_ssize_t words = 2 + (len(kind) + 7) // 8, option_words = _option_words(options)
    for each in arrays:
        if each is None:
            words += 1
        elif isinstance(each, ndarray):
            words += 1 + 2 * PyArray_NDIM(<PyArrayObject *><PyObject *>each)
        else:
            raise TypeError(f"got {type(each).__name__}, expected an array of NumPy or None")
    cdef bytes key = PyBytes_FromStringAndSize(NULL, (words + option_words) * sizeof(int64_t))
    cdef int64_t *word = <int64_t *>PyBytes_AS_STRING(key)
    word[0], word[1] = more, len(kind) << 32 | len(arrays)
    word = _put_bytes(word + 2, PyBytes_AS_STRING(kind), len(kind))
    for each in arrays:
        word = _put_layout(word, each)
    _put_options(word, options)
    return key


cdef int64_t *_put_bytes(int64_t *word, const char *data, Py_ssize_t nbytes) noexcept:
    cdef Py_ssize_t count = (nbytes + 7) // 8
    if count:
        word[count - 1] = 0
        memcpy(word, data, nbytes)
    return word + count


cdef int64_t *_put_layout(int64_t *word, object each):
    cdef Py_ssize_t axis, count
    cdef PyArrayObject *array
    if each is None:
        word[0] = -1
        return word + 1
    array = <PyArrayObject *><PyObject *>each
    count = PyArray_NDIM(array)
    word[0] = count << 32 | PyArray_TYPE(array) << 1 | PyArray_ISNOTSWAPPED(array)
    word += 1
    for axis in range(count):
        word[0], word[1] = PyArray_DIMS(array)[axis], PyArray_STRIDES(array)[axis]
        word += 2
    return word


cdef enum:  # what an option is: True and 1.0 equal 1, and are not the same option
    NONE, BOOL, INT, FLOAT, STR, TUPLE


cdef Py_ssize_t _option_words(tuple options) except -1:
    cdef Py_ssize_t words = 0, nbytes
    for each in options:
        if each is None:
            words += 1
        elif isinstance(each, (int, float)):  # numpy.float64 is one
            words += 2
        elif isinstance(each, str):
            PyUnicode_AsUTF8AndSize(each, &nbytes)
            words += 1 + (nbytes + 7) // 8
        elif isinstance(each, tuple):
            words += 1 + _option_words(each)
        else:
            raise TypeError(f"got {type(each).__name__}, expected None, a number, a str or a tuple of such")
    return words


cdef int64_t *_put_options(int64_t *word, tuple options) except NULL:
    cdef Py_ssize_t nbytes
    cdef const char *text
    cdef double number
    for each in options:
        if each is None:
            word[0] = NONE
            word += 1
        elif isinstance(each, int):
            word[0], word[1] = BOOL if isinstance(each, bool) else INT, each
            word += 2
        elif isinstance(each, float):
            number = each
            word[0] = FLOAT
            memcpy(word + 1, &number, sizeof(number))
            word += 2
        elif isinstance(each, str):
            text = PyUnicode_AsUTF8AndSize(each, &nbytes)
            word[0] = nbytes << 8 | STR
            word = _put_bytes(word + 1, text, nbytes)
        else:
            word[0] = len(<tuple>each) << 8 | TUPLE
            word = _put_options(word + 1, each)
    return word


cdef class PrimitiveSequence:
    cdef Execute _execute
    cdef SetHandle _set_handle
    cdef GetThreads _get_threads
    cdef SetThreads _set_threads
    cdef int _threads, _slot_count, _step_count
    cdef Slot *_slots
    cdef Step *_steps
    cdef Argument *_arguments
    cdef tuple _expected
    cdef object _owner

    def __init__(self, tuple functions, int threads, slots, steps, tuple expected, owner):
        cdef Py_ssize_t i, at = 0
        self._execute = <Execute><uintptr_t>functions[0]
        self._set_handle = <SetHandle><uintptr_t>functions[1]
        self._get_threads = <GetThreads><uintptr_t>functions[2]
        self._set_threads = <SetThreads><uintptr_t>functions[3]
        self._threads, self._expected, self._owner = threads, expected, owner
        cdef Py_ssize_t total = sum(len(arguments) for _, arguments in steps)
        self._slots = <Slot *>calloc(max(1, len(slots)), sizeof(Slot))
        self._steps = <Step *>calloc(max(1, len(steps)), sizeof(Step))
        self._arguments = <Argument *>calloc(max(1, total), sizeof(Argument))
        if self._slots is NULL or self._steps is NULL or self._arguments is NULL:
            raise MemoryError
        for i, (memory, array, offset) in enumerate(slots):
            self._slots[i].memory = <void *><uintptr_t>memory
            self._slots[i].array, self._slots[i].offset = array, offset
        for i, (primitive, arguments) in enumerate(steps):
            self._steps[i].primitive = <void *><uintptr_t>primitive
            self._steps[i].count = len(arguments)
            self._steps[i].arguments = &self._arguments[at]
            for name, memory in arguments:
                self._arguments[at].name = name
                self._arguments[at].memory = <void *><uintptr_t>memory
                at += 1
        self._slot_count, self._step_count = len(slots), len(steps)

    def __dealloc__(self):
        free(self._slots)
        free(self._steps)
        free(self._arguments)

    def run(self, arrays, uintptr_t stream, uintptr_t scratch):
        cdef int status = 0, before, i
        cdef int64_t number
        cdef Slot *slot
        cdef list given = arrays if type(arrays) is list else list(arrays)
        self._check(given)
        for i in range(self._slot_count):
            slot = &self._slots[i]
            number = slot.array
            if number < 0:
                status = self._set_handle(slot.memory, <void *>(scratch + slot.offset))
            else:
                status = self._set_handle(
                    slot.memory, <char *>PyArray_DATA(<PyArrayObject *><PyObject *>given[number]) + slot.offset
                )
            if status:
                return status
        with nogil:
            before = self._get_threads()
            if before != self._threads:
                self._set_threads(self._threads)
            for i in range(self._step_count):
                status = self._execute(
                    self._steps[i].primitive, <void *>stream, self._steps[i].count, self._steps[i].arguments
                )
                if status:
                    break
            if before != self._threads:
                self._set_threads(before)
        return status

    cdef int _check(self, list given) except -1:
        """Refuse arrays that do not lie as the plan was made for, which the library could not tell."""
        cdef Py_ssize_t number, axis, extent
        cdef PyArrayObject *array
        if len(given) != len(self._expected):
            raise UsageError(f"got {len(given)} arrays, expected {len(self._expected)}: inputs, then outputs")
        for number in range(len(given)):
            want = self._expected[number]
            if want is None:
                continue
            dtype, shape, strides = want
            if type(given[number]) is not ndarray:
                self._refuse(number, given[number])
            array = <PyArrayObject *><PyObject *>given[number]
            if PyArray_DESCR(array) != <PyObject *>dtype and given[number].dtype != dtype:
                self._refuse(number, given[number])
            if PyArray_NDIM(array) != len(<tuple>shape):
                self._refuse(number, given[number])
            for axis in range(len(<tuple>shape)):
                extent = (<tuple>shape)[axis]
                if PyArray_DIMS(array)[axis] != extent:
                    self._refuse(number, given[number])
                if extent > 1 and PyArray_STRIDES(array)[axis] != <intptr_t>(<tuple>strides)[axis]:
                    self._refuse(number, given[number])
        return 0

    cdef int _refuse(self, Py_ssize_t number, object got) except -1:
        _, shape, strides = self._expected[number]
        came = (got.dtype, got.shape, got.strides) if isinstance(got, ndarray) else type(got).__name__
        raise UsageError(
            f"array {number}: got {came}, expected {self._expected[number]} (dtype, shape, strides in bytes), "
            "the layout that this plan was made for"
        )

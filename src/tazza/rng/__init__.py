"""Random numbers as pure algorithms: they know NumPy arrays, counters and keys, but no devices.

Everything here is a function of ``(key, position)``: a *cursor* names a place in a Philox4x64-10 stream, a *kernel*
writes the values that belong to that place. Hence a draw may be cut anywhere, filled by any number of threads, later,
or in another process, and has the same bits. ``docs/design/0003-random.md`` has the choices.

=============  =====================================================================================
``philox``     the bijection itself in integer array operations; the reference for device kernels
``keys``       seeds and names to keys
``cursor``     a place in a stream, and NumPy's own bit generator set to it
``known``      NumPy's bit generator with a known key
``filling``    kernels over slices and threads
``uniform``    ``random`` and raw words, as NumPy has them
``inverse``    normal and exponential values from one word each, by correctly rounded operations only
``bounded``    integers in a range from one word each
``selection``  permutations and samples without replacement
``arguments``  shapes, dtypes, shards and numbers that users pass
``snapshot``   the JSON form of a generator's state
=============  =====================================================================================
"""

"""The contract of a backend as tests, in levels; each level stands on the ones before it.

| level | file | what passes |
|---|---|---|
| transport | ``level_1_transport.py`` | the raw driver: memory, copies, fills, queues, events |
| | ``level_1_waist.py`` | the same through a context: copies, order, limits |
| | ``level_1_strided.py`` | memory with gaps |
| kernels | ``level_2_kernels.py`` | launched functions, compiled kernels, failure, random numbers |
| arrays | ``level_3_arrays.py`` | the array library: dtypes, conversion, moves between devices |
| dnn | ``level_4_dnn.py`` | neural-network operations against plain loops |

Run it for any backend that `tazza.devices` finds::

    pytest --pyargs tazza.testing.contract --tazza-backend=npu

A test is skipped only because of what the driver declares in its `Capabilities`, with that as the reason; the last
test, in ``levels_declared.py``, checks that the skips equal the declaration exactly. Start at level 1: its first
failure is the next thing to write.
"""

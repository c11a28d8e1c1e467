"""NVIDIA devices through the CUDA driver, by its official bindings `cuda.bindings.driver`.

Nothing here is imported, no library is loaded and no device is touched before somebody asks for a CUDA device; the
first memory, queue or event of a device brings its primary context to life.
"""

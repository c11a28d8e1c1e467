/* The calls that copy a row of bytes. */
#include "copies.h"
#include "memory.h"

CUresult emulated_cuMemcpy(CUdeviceptr target, CUdeviceptr source, size_t size) {
    return copy_submit(NULL, copy_of_bytes(target, source, size), false);
}

CUresult emulated_cuMemcpyHtoD_v2(CUdeviceptr target, const void *source, size_t size) {
    return copy_submit(NULL, copy_of_bytes(target, (uintptr_t)source, size), false);
}

CUresult emulated_cuMemcpyDtoH_v2(void *target, CUdeviceptr source, size_t size) {
    return copy_submit(NULL, copy_of_bytes((uintptr_t)target, source, size), false);
}

CUresult emulated_cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t size) {
    return copy_submit(NULL, copy_of_bytes(target, source, size), false);
}

CUresult emulated_cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
    return copy_submit(stream, copy_of_bytes(target, source, size), true);
}

CUresult emulated_cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, CUstream stream) {
    return copy_submit(stream, copy_of_bytes(target, (uintptr_t)source, size), true);
}

CUresult emulated_cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, CUstream stream) {
    return copy_submit(stream, copy_of_bytes((uintptr_t)target, source, size), true);
}

CUresult emulated_cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
    return copy_submit(stream, copy_of_bytes(target, source, size), true);
}

static CUresult find_contexts(CUcontext target_handle, CUcontext source_handle, Context **target, Context **source) {
    *target = context_find(target_handle);
    *source = context_find(source_handle);
    if (!*target || !*source)
        return CUDA_ERROR_INVALID_CONTEXT;
    CUresult result = context_state(*target);
    return result ? result : context_state(*source);
}

CUresult emulated_cuMemcpyPeerAsync(CUdeviceptr target, CUcontext target_handle, CUdeviceptr source,
                                    CUcontext source_handle, size_t size, CUstream stream) {
    Context *to, *from;
    CUresult result = find_contexts(target_handle, source_handle, &to, &from);
    return result ? result : copy_submit(stream, copy_of_bytes(target, source, size), true);
}

/* It comes after all work of both contexts and before all that follows in either: so the host waits before and after.
 */
CUresult emulated_cuMemcpyPeer(CUdeviceptr target, CUcontext target_handle, CUdeviceptr source, CUcontext source_handle,
                               size_t size) {
    Context *to, *from;
    CUresult result = find_contexts(target_handle, source_handle, &to, &from);
    if (result || (result = context_wait(to)) || (result = context_wait(from)))
        return result;
    result = copy_submit(NULL, copy_of_bytes(target, source, size), false);
    Stream *stream;
    return result || (result = stream_find(NULL, &stream)) ? result : stream_wait(stream);
}

static bool has_attributes(const size_t *indices, size_t n_indices, size_t count) {
    if (!n_indices || n_indices > count || indices[0] != 0)
        return false;
    for (size_t i = 1; i < n_indices; i++)
        if (indices[i] <= indices[i - 1] || indices[i] >= count)
            return false;
    return true;
}

/* The copies of a batch are in no order among each other; in the order of the stream they are right as well. */
CUresult emulated_cuMemcpyBatchAsync_v2(CUdeviceptr *targets, CUdeviceptr *sources, size_t *sizes, size_t count,
                                        CUmemcpyAttributes *attributes, size_t *indices, size_t n_attributes,
                                        CUstream handle) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result)
        return result;
    if (!targets || !sources || !sizes || !count || !attributes || !indices ||
        !has_attributes(indices, n_attributes, count))
        return CUDA_ERROR_INVALID_VALUE;
    if (!handle || stream == stream->context->legacy)
        return CUDA_ERROR_INVALID_HANDLE;
    for (size_t i = 0; i < count; i++) {
        Copy copy = copy_of_bytes(targets[i], sources[i], sizes[i]);
        if (!sizes[i] || (result = copy_check(&copy)))
            return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count && !result; i++)
        result = copy_submit(handle, copy_of_bytes(targets[i], sources[i], sizes[i]), true);
    return result;
}

CUresult emulated_cuMemcpyBatchAsync(CUdeviceptr *targets, CUdeviceptr *sources, size_t *sizes, size_t count,
                                     CUmemcpyAttributes *attributes, size_t *indices, size_t n_attributes,
                                     size_t *failed, CUstream stream) {
    CUresult result =
        emulated_cuMemcpyBatchAsync_v2(targets, sources, sizes, count, attributes, indices, n_attributes, stream);
    if (result && failed)
        *failed = SIZE_MAX; /* not one copy's error */
    return result;
}

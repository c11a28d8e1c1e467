/* Fills. Like the driver's, those without Async in their name do not wait either, except for host memory. */
#include "call.h"
#include "capture.h"
#include "copies.h"
#include "memory.h"
#include "stream.h"

CUresult fill_check(const Fill *fill, const Context *context) {
    CUresult result = range_check(fill->target, fill_extent(fill));
    const Allocation *allocation = allocation_at(fill->target);
    if (result || !allocation || fill->target % fill->element || !may_access(context, allocation))
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

static CUresult submit(CUstream handle, Fill fill, bool asynchronous) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result)
        return result;
    if (!fill.width || !fill.height)
        return CUDA_SUCCESS;
    if (fill.height > 1 && fill.pitch < fill.width * fill.element)
        return CUDA_ERROR_INVALID_VALUE;
    if ((result = fill_check(&fill, stream->context)))
        return result;
    call_note("bytes", fill.width * fill.element * fill.height);
    call_note("target", fill.target);
    Work work = {.kind = WORK_FILL, .fill = fill};
    if (stream->capture)
        return asynchronous ? stream_submit(stream, &work, NULL) : capture_violated(stream);
    if (!asynchronous && (result = capture_forbids_unsafe_calls()))
        return result;
    bool wait = !asynchronous && allocation_at(fill.target)->place == PLACE_PINNED;
    return wait ? stream_run(stream, &work) : stream_submit(stream, &work, NULL);
}

static CUresult submit_row(CUstream stream, CUdeviceptr target, unsigned element, unsigned value, size_t n,
                           bool asynchronous) {
    return submit(stream, (Fill){.target = target, .width = n, .height = 1, .element = element, .value = value},
                  asynchronous);
}

static CUresult submit_rows(CUstream stream, CUdeviceptr target, size_t pitch, unsigned element, unsigned value,
                            size_t width, size_t height, bool asynchronous) {
    Fill fill = {
        .target = target, .pitch = pitch, .width = width, .height = height, .element = element, .value = value};
    return submit(stream, fill, asynchronous);
}

CUresult emulated_cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t n) {
    return submit_row(NULL, target, 1, value, n, false);
}

CUresult emulated_cuMemsetD16_v2(CUdeviceptr target, unsigned short value, size_t n) {
    return submit_row(NULL, target, 2, value, n, false);
}

CUresult emulated_cuMemsetD32_v2(CUdeviceptr target, unsigned int value, size_t n) {
    return submit_row(NULL, target, 4, value, n, false);
}

CUresult emulated_cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t n, CUstream stream) {
    return submit_row(stream, target, 1, value, n, true);
}

CUresult emulated_cuMemsetD16Async(CUdeviceptr target, unsigned short value, size_t n, CUstream stream) {
    return submit_row(stream, target, 2, value, n, true);
}

CUresult emulated_cuMemsetD32Async(CUdeviceptr target, unsigned int value, size_t n, CUstream stream) {
    return submit_row(stream, target, 4, value, n, true);
}

CUresult emulated_cuMemsetD2D8_v2(CUdeviceptr target, size_t pitch, unsigned char value, size_t width, size_t height) {
    return submit_rows(NULL, target, pitch, 1, value, width, height, false);
}

CUresult emulated_cuMemsetD2D16_v2(CUdeviceptr target, size_t pitch, unsigned short value, size_t width,
                                   size_t height) {
    return submit_rows(NULL, target, pitch, 2, value, width, height, false);
}

CUresult emulated_cuMemsetD2D32_v2(CUdeviceptr target, size_t pitch, unsigned int value, size_t width, size_t height) {
    return submit_rows(NULL, target, pitch, 4, value, width, height, false);
}

CUresult emulated_cuMemsetD2D8Async(CUdeviceptr target, size_t pitch, unsigned char value, size_t width, size_t height,
                                    CUstream stream) {
    return submit_rows(stream, target, pitch, 1, value, width, height, true);
}

CUresult emulated_cuMemsetD2D16Async(CUdeviceptr target, size_t pitch, unsigned short value, size_t width,
                                     size_t height, CUstream stream) {
    return submit_rows(stream, target, pitch, 2, value, width, height, true);
}

CUresult emulated_cuMemsetD2D32Async(CUdeviceptr target, size_t pitch, unsigned int value, size_t width, size_t height,
                                     CUstream stream) {
    return submit_rows(stream, target, pitch, 4, value, width, height, true);
}

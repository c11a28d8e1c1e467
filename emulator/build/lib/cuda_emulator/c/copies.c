/* Copies: how each kind of memory is treated; the calls themselves are in copy_calls.c and box_copies.c.
 *
 *     from pageable host memory    asynchronous calls stage the bytes, so that the source may be changed on return
 *     to pageable host memory      every call returns when the bytes are there
 *     pinned, registered, managed  asynchronous calls are so in truth, in both directions
 *     device to device             asynchronous, also the call without Async in its name
 *
 * Copies between devices need no peer access: the driver moves them through the host where there is none. */
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "capture.h"
#include "copies.h"
#include "memory.h"

static void stage(Copy *copy) {
    size_t row = copy->width, slice = row * copy->height;
    copy->staged = claim(slice * copy->depth);
    for (size_t z = 0; z < copy->depth; z++)
        for (size_t y = 0; y < copy->height; y++)
            memcpy((char *)copy->staged + z * slice + y * row,
                   (const char *)copy->source + z * copy->source_slice + y * copy->source_pitch, row);
    copy->source_pitch = row;
    copy->source_slice = slice;
}

static bool is_host(uintptr_t address) {
    const Allocation *allocation = allocation_at(address);
    return allocation ? allocation->place == PLACE_PINNED || allocation->place == PLACE_REGISTERED
                      : !is_device_address(address);
}

Copy copy_of_bytes(uintptr_t target, uintptr_t source, size_t size) {
    return (Copy){.target = target, .source = source, .width = size, .height = 1, .depth = 1};
}

CUresult copy_check(const Copy *copy) {
    CUresult result = range_check(copy->target, copy_target_extent(copy));
    return result ? result : range_check(copy->source, copy_source_extent(copy));
}

CUresult copy_submit(CUstream handle, Copy copy, bool asynchronous) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result || (result = copy_check(&copy)))
        return result;
    call_note("bytes", copy.width * copy.height * copy.depth);
    call_note("target", copy.target);
    call_note("source", copy.source);
    Work work = {.kind = WORK_COPY, .copy = copy};
    if (stream->capture)
        return asynchronous ? stream_submit(stream, &work, NULL) : capture_violated(stream);
    if (!asynchronous && (result = capture_forbids_unsafe_calls()))
        return result;
    if (!(copy.width && copy.height && copy.depth))
        return CUDA_SUCCESS;
    bool wait = asynchronous ? is_pageable(copy.target) : is_host(copy.target) || is_host(copy.source);
    if (!wait && is_pageable(copy.source))
        stage(&work.copy);
    return wait ? stream_run(stream, &work) : stream_submit(stream, &work, NULL);
}

/* Allocating and freeing in the order of a stream.
 *
 * Memory is counted when a call is made, and freed when the free's turn comes. An allocation whose free is submitted is
 * `leaving`; a later allocation may take its bytes over: on the same stream at once, since it comes behind the free
 * anyway, on another stream by coming after the free (an internal dependency, if the pool allows it). So the order of
 * trying is: what the pool holds unused, what leaves on the same stream, more from the device, what leaves on other
 * streams. Addresses are always new: only the count is reused, so that a use after free meets no other allocation's
 * bytes. */
#include "call.h"
#include "capture.h"
#include "pool.h"
#include "report.h"

enum { GRAIN = 512 };

static size_t counted(size_t size) {
    return round_up(size, GRAIN);
}

/* From now on the bytes of an allocation are counted for somebody else. */
static void hand_over(Pool *pool, Allocation **link) {
    Allocation *allocation = *link;
    *link = allocation->next_leaving;
    allocation->handed_over = true;
    pool->used -= counted(allocation->size);
}

/* Takes leaving allocations until `size` bytes are there, of this stream only or of all; those of others go into
 * `after`. */
static void reuse_leaving(Pool *pool, size_t size, const Stream *stream, bool others, Order *after) {
    for (Allocation **link = &pool->leaving; *link && pool->used + size > pool->reserved;) {
        Allocation *allocation = *link;
        bool same = allocation->freed_on == stream->id;
        if (!same && !others) {
            link = &allocation->next_leaving;
            continue;
        }
        if (!same)
            order_add(after, allocation->freed);
        hand_over(pool, link);
    }
}

static bool grow(Pool *pool, size_t size) {
    size_t missing = pool->used + size - pool->reserved;
    if (pool->device && device_charge(pool->device, missing))
        return false;
    pool->reserved += missing;
    return true;
}

static size_t leaving_bytes(const Pool *pool) {
    size_t bytes = 0;
    for (const Allocation *allocation = pool->leaving; allocation; allocation = allocation->next_leaving)
        bytes += counted(allocation->size);
    return bytes;
}

static bool count(Pool *pool, size_t size, const Stream *stream, Order *after) {
    size_t limit = pool->properties.maxSize;
    if (pool->used + size < size || (limit && pool->used + size > limit + leaving_bytes(pool)))
        return false;
    if (pool->used + size > pool->reserved)
        reuse_leaving(pool, size, stream, false, after);
    if (pool->used + size > pool->reserved && !grow(pool, size)) {
        /* Nothing is taken over for an allocation that fails after all. */
        if (!pool->internal_dependencies || pool->used + size > pool->reserved + leaving_bytes(pool))
            return false;
        reuse_leaving(pool, size, stream, true, after);
    }
    pool->used += size;
    pool->most_used = pool->used > pool->most_used ? pool->used : pool->most_used;
    pool->most_reserved = pool->reserved > pool->most_reserved ? pool->reserved : pool->most_reserved;
    return true;
}

Allocation *pool_allocate(Pool *pool, size_t size, const Stream *stream, Order *after) {
    if (size > SIZE_MAX - GRAIN || !count(pool, counted(size), stream, after))
        return NULL;
    Backing backing = {.file = pool->file, .offset = pool->file_end};
    bool room = pool->file < 0 || pool_file_grow(pool, size);
    Allocation *allocation = room ? allocation_new(pool->place, pool->device, size, backing) : NULL;
    if (!allocation) {
        pool->used -= counted(size);
        pool_trim(pool, pool->keep);
        return NULL;
    }
    allocation_paint(allocation);
    allocation->pool = pool;
    allocation->context = stream->context;
    pool->n_allocations++;
    return allocation;
}

void pool_take_back(Allocation *allocation) {
    Pool *pool = allocation->pool;
    for (Allocation **link = &pool->leaving; *link; link = &(*link)->next_leaving)
        if (*link == allocation) {
            *link = allocation->next_leaving;
            break;
        }
    if (!allocation->handed_over && !pool->imported)
        pool->used -= counted(allocation->size);
    if (pool->file >= 0 && !pool->imported)
        pool_file_punch(pool, allocation->offset, allocation->size);
    pool_trim(pool, pool->keep);
    if (--pool->n_allocations == 0 && !pool->object.handle)
        pool_close(pool);
}

static CUresult allocate(CUdeviceptr *address, size_t size, Pool *pool, Stream *stream) {
    if (!address || !size || pool->imported)
        return CUDA_ERROR_INVALID_VALUE;
    call_note("bytes", size);
    if (stream->capture)
        return capture_allocate(stream, pool, size, address);
    Order after = {0};
    Allocation *allocation = pool_allocate(pool, size, stream, &after);
    if (!allocation) {
        order_end(&after);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    Work work = {.kind = WORK_ALLOC};
    CUresult result = stream_submit_after(stream, &work, &after, &allocation->available);
    if (result) {
        allocation_end(allocation);
        return result;
    }
    *address = allocation->address;
    call_note("address", allocation->address);
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t size, CUmemoryPool handle,
                                          CUstream stream_handle) {
    Stream *stream;
    Pool *pool = pool_find(handle);
    CUresult result = stream_find(stream_handle, &stream);
    if (result)
        return result;
    return pool ? allocate(address, size, pool, stream) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuMemAllocAsync(CUdeviceptr *address, size_t size, CUstream stream_handle) {
    Stream *stream;
    CUresult result = stream_find(stream_handle, &stream);
    return result ? result : allocate(address, size, stream->context->device->pool, stream);
}

static CUresult refuse_free(CUdeviceptr address, const Allocation *allocation) {
    if (is_device_address(address))
        hazard("bad free", "%s(0x%llx): %s", call_name(), address,
               !allocation           ? "no live allocation"
               : allocation->leaving ? "its free is already submitted"
                                     : "not where an allocation of a pool starts");
    return CUDA_ERROR_INVALID_VALUE;
}

static void leave(Allocation *allocation, const Stream *stream, Record *freed) {
    allocation->leaving = true;
    allocation->taken = false;
    for (Allocation **end = allocation->pool ? &allocation->pool->leaving : NULL; end;
         end = *end ? &(*end)->next_leaving : NULL)
        if (!*end) {
            *end = allocation;
            break;
        }
    allocation->freed = freed;
    allocation->freed_on = stream->id;
}

CUresult emulated_cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result)
        return result;
    if (stream->capture)
        return capture_free(stream, address);
    Allocation *allocation = allocation_at(address);
    bool ours = allocation && allocation->address == address &&
                (allocation->pool || (allocation->of_graph && allocation->taken));
    if (!ours || allocation->leaving)
        return refuse_free(address, allocation);
    call_note("bytes", allocation->size);
    Record *freed;
    Work work = {.kind = WORK_FREE, .allocation = allocation};
    result = stream_submit(stream, &work, &freed);
    if (!result)
        leave(allocation, stream, freed);
    return result;
}

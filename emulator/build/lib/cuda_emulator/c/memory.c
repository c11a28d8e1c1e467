/* Allocating and freeing memory outside of pools: the devices', pinned, registered and managed. */
#include "memory.h"
#include "call.h"
#include "capture.h"
#include "pool.h"
#include "report.h"

/* Device memory is counted in steps of this many bytes. */
enum { GRAIN = 512 };

CUresult emulated_cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    Context *context;
    CUresult result = context_current(&context);
    if (result || (result = capture_forbids_unsafe_calls()))
        return result;
    if (!address || !size)
        return CUDA_ERROR_INVALID_VALUE;
    call_note("bytes", size);
    size_t charged = round_up(size, GRAIN);
    if (charged < size || (result = device_charge(context->device, charged)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    Allocation *allocation = allocation_new(PLACE_DEVICE, context->device, size, fresh_pages);
    if (!allocation) {
        device_refund(context->device, charged);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    allocation_paint(allocation);
    allocation->context = context;
    allocation->charged = charged;
    *address = allocation->address;
    call_note("address", allocation->address);
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height,
                                     unsigned int element) {
    if (!address || !pitch || !width || !height || (element != 4 && element != 8 && element != 16))
        return CUDA_ERROR_INVALID_VALUE;
    size_t row = round_up(width, GRAIN);
    if (row < width || row > SIZE_MAX / height)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = emulated_cuMemAlloc_v2(address, row * height);
    if (!result)
        *pitch = row;
    return result;
}

/* As the driver does, a free waits for what was submitted before it, so that no operation loses its memory under way.
 */
static CUresult end_after_work(uintptr_t address) {
    Allocation *allocation = allocation_at(address);
    Context *context = allocation->context  ? allocation->context
                       : allocation->device ? allocation->device->primary
                                            : context_top();
    CUresult result = context ? context_state(context) : CUDA_SUCCESS;
    if (result)
        return result;
    if (context && (result = context_wait(context)))
        return result;
    allocation = allocation_at(address); /* the lock was given up meanwhile */
    if (!allocation || allocation->leaving)
        return CUDA_ERROR_INVALID_VALUE;
    call_note("bytes", allocation->size);
    allocation->taken = false;
    allocation_release(allocation);
    return context ? context_state(context) : CUDA_SUCCESS;
}

CUresult emulated_cuMemFree_v2(CUdeviceptr address) {
    if (!address)
        return CUDA_SUCCESS;
    CUresult result = capture_forbids_unsafe_calls();
    if (result)
        return result;
    const Allocation *allocation = allocation_at(address);
    bool freeable = allocation && allocation->address == address && !allocation->leaving &&
                    (allocation->place == PLACE_DEVICE || allocation->place == PLACE_MANAGED || allocation->pool);
    if (!freeable && is_device_address(address))
        hazard("bad free", "%s(0x%llx): %s", call_name(), address,
               allocation ? "not where an allocation starts, or freed twice" : "no live allocation");
    return freeable ? end_after_work(address) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    if (!free_bytes || !total)
        return CUDA_ERROR_INVALID_VALUE;
    *free_bytes = context->device->total - context->device->used;
    *total = context->device->total;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address) {
    const Allocation *allocation = allocation_at(address);
    if (!allocation)
        return CUDA_ERROR_NOT_FOUND;
    if (base)
        *base = allocation->address;
    if (size)
        *size = allocation->size;
    return CUDA_SUCCESS;
}

static CUresult host_memory(Place place, size_t size, unsigned flags, uintptr_t *address) {
    Context *context;
    CUresult result = context_current(&context);
    if (result || (result = capture_forbids_unsafe_calls()))
        return result;
    if (!address || !size)
        return CUDA_ERROR_INVALID_VALUE;
    Allocation *allocation = allocation_new(place, place == PLACE_MANAGED ? context->device : NULL, size, fresh_pages);
    if (!allocation)
        return CUDA_ERROR_OUT_OF_MEMORY;
    allocation_paint(allocation);
    allocation->context = context;
    allocation->flags = flags;
    *address = allocation->address;
    call_note("bytes", size);
    call_note("address", allocation->address);
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemHostAlloc(void **memory, size_t size, unsigned int flags) {
    unsigned known = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
    if (flags & ~known)
        return CUDA_ERROR_INVALID_VALUE;
    return host_memory(PLACE_PINNED, size, flags, (uintptr_t *)memory);
}

CUresult emulated_cuMemAllocHost_v2(void **memory, size_t size) {
    return host_memory(PLACE_PINNED, size, CU_MEMHOSTALLOC_DEVICEMAP, (uintptr_t *)memory);
}

CUresult emulated_cuMemAllocManaged(CUdeviceptr *address, size_t size, unsigned int flags) {
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST)
        return CUDA_ERROR_INVALID_VALUE;
    return host_memory(PLACE_MANAGED, size, flags, (uintptr_t *)address);
}

static Allocation *host_allocation(const void *memory, Place place) {
    Allocation *allocation = allocation_at((uintptr_t)memory);
    bool found = allocation && allocation->place == place && allocation->address == (uintptr_t)memory;
    return found && !allocation->leaving ? allocation : NULL;
}

CUresult emulated_cuMemFreeHost(void *memory) {
    if (!memory)
        return CUDA_SUCCESS;
    return host_allocation(memory, PLACE_PINNED) ? end_after_work((uintptr_t)memory) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuMemHostRegister_v2(void *memory, size_t size, unsigned int flags) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    unsigned known = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY;
    if (!memory || !size || flags & ~known)
        return CUDA_ERROR_INVALID_VALUE;
    if (allocation_across((uintptr_t)memory, size))
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    Allocation *allocation = claim(sizeof *allocation);
    uintptr_t address = (uintptr_t)memory;
    *allocation = (Allocation){.address = address,
                               .bytes = address,
                               .block = address,
                               .size = size,
                               .block_size = size,
                               .place = PLACE_REGISTERED,
                               .context = context,
                               .flags = flags};
    allocation_add(allocation);
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemHostRegister(void *memory, size_t size, unsigned int flags) {
    return emulated_cuMemHostRegister_v2(memory, size, flags);
}

CUresult emulated_cuMemHostUnregister(void *memory) {
    if (!memory)
        return CUDA_ERROR_INVALID_VALUE;
    return host_allocation(memory, PLACE_REGISTERED) ? end_after_work((uintptr_t)memory)
                                                     : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

static bool is_host_memory(const Allocation *allocation) {
    return allocation && (allocation->place == PLACE_PINNED || allocation->place == PLACE_REGISTERED);
}

CUresult emulated_cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *memory, unsigned int flags) {
    if (!address || flags || !is_host_memory(allocation_at((uintptr_t)memory)))
        return CUDA_ERROR_INVALID_VALUE;
    *address = (CUdeviceptr)memory; /* one address for both, as unified addressing has it */
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemHostGetFlags(unsigned int *flags, void *memory) {
    const Allocation *allocation = allocation_at((uintptr_t)memory);
    if (!flags || !is_host_memory(allocation))
        return CUDA_ERROR_INVALID_VALUE;
    *flags = allocation->flags;
    return CUDA_SUCCESS;
}

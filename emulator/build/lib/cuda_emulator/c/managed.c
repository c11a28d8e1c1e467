/* Managed memory: advice and prefetching. The memory is one for all devices and the host, so what was advised and where
 * it was prefetched is only kept, to be told again. */
#include "call.h"
#include "memory.h"

static Allocation *find(CUdeviceptr address, size_t size) {
    Allocation *allocation = allocation_at(address);
    bool inside = allocation && size && size <= allocation->size - (address - allocation->address);
    return inside && allocation->place == PLACE_MANAGED ? allocation : NULL;
}

static bool is_location(CUmemLocation location) {
    return location.type == CU_MEM_LOCATION_TYPE_DEVICE
               ? device_at(location.id) != NULL
               : location.type >= CU_MEM_LOCATION_TYPE_HOST && location.type <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
}

static CUmemLocation location_of(CUdevice device) {
    CUmemLocationType type = device == CU_DEVICE_CPU ? CU_MEM_LOCATION_TYPE_HOST : CU_MEM_LOCATION_TYPE_DEVICE;
    return (CUmemLocation){.type = type, .id = device == CU_DEVICE_CPU ? 0 : device};
}

CUresult emulated_cuMemPrefetchAsync_v2(CUdeviceptr address, size_t size, CUmemLocation location, unsigned int flags,
                                        CUstream handle) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    Allocation *allocation = find(address, size);
    if (result)
        return result;
    if (!allocation || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!is_location(location))
        return CUDA_ERROR_INVALID_DEVICE;
    if ((result = stream_not_capturing(stream)))
        return result;
    allocation->prefetched = location;
    call_note("bytes", size);
    Work mark = {.kind = WORK_MARK};
    return stream_submit(stream, &mark, NULL);
}

CUresult emulated_cuMemPrefetchAsync(CUdeviceptr address, size_t size, CUdevice device, CUstream stream) {
    return emulated_cuMemPrefetchAsync_v2(address, size, location_of(device), 0, stream);
}

CUresult emulated_cuMemPrefetchBatchAsync(CUdeviceptr *addresses, size_t *sizes, size_t count, CUmemLocation *locations,
                                          size_t *indices, size_t n_locations, unsigned long long flags,
                                          CUstream stream) {
    if (!addresses || !sizes || !count || !locations || !indices || !n_locations || n_locations > count || indices[0] ||
        flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0, location = 0; i < count && !result; i++) {
        if (location + 1 < n_locations && indices[location + 1] == i)
            location++;
        result = emulated_cuMemPrefetchAsync_v2(addresses[i], sizes[i], locations[location], 0, stream);
    }
    return result;
}

/* Its bytes mean nothing any more: the poison shows who reads them all the same. */
CUresult emulated_cuMemDiscardBatchAsync(CUdeviceptr *addresses, size_t *sizes, size_t count, unsigned long long flags,
                                         CUstream handle) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result || !addresses || !sizes || !count || flags)
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (!find(addresses[i], sizes[i]))
            return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count && settings.poison >= 0 && !result; i++) {
        Fill fill = {
            .target = addresses[i], .width = sizes[i], .height = 1, .element = 1, .value = (unsigned)settings.poison};
        Work work = {.kind = WORK_FILL, .fill = fill};
        result = stream_submit(stream, &work, NULL);
    }
    return result;
}

CUresult emulated_cuMemDiscardAndPrefetchBatchAsync(CUdeviceptr *addresses, size_t *sizes, size_t count,
                                                    CUmemLocation *locations, size_t *indices, size_t n_locations,
                                                    unsigned long long flags, CUstream stream) {
    CUresult result = emulated_cuMemDiscardBatchAsync(addresses, sizes, count, flags, stream);
    return result ? result
                  : emulated_cuMemPrefetchBatchAsync(addresses, sizes, count, locations, indices, n_locations, flags,
                                                     stream);
}

CUresult emulated_cuMemAdvise_v2(CUdeviceptr address, size_t size, CUmem_advise advice, CUmemLocation location) {
    Allocation *allocation = find(address, size);
    if (!allocation)
        return CUDA_ERROR_INVALID_VALUE;
    bool read_mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY || advice == CU_MEM_ADVISE_UNSET_READ_MOSTLY;
    if (!read_mostly && advice != CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION && !is_location(location))
        return CUDA_ERROR_INVALID_DEVICE;
    uint32_t bit = location.type == CU_MEM_LOCATION_TYPE_DEVICE ? 1u << location.id
                                                                : 1u << MAX_DEVICES; /* the host has the last one */
    switch (advice) {
    case CU_MEM_ADVISE_SET_READ_MOSTLY:
    case CU_MEM_ADVISE_UNSET_READ_MOSTLY:
        allocation->read_mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY;
        return CUDA_SUCCESS;
    case CU_MEM_ADVISE_SET_PREFERRED_LOCATION:
        allocation->preferred = location;
        return CUDA_SUCCESS;
    case CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION:
        allocation->preferred = (CUmemLocation){0};
        return CUDA_SUCCESS;
    case CU_MEM_ADVISE_SET_ACCESSED_BY:
        allocation->accessed_by |= bit;
        return CUDA_SUCCESS;
    case CU_MEM_ADVISE_UNSET_ACCESSED_BY:
        allocation->accessed_by &= ~bit;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult emulated_cuMemAdvise(CUdeviceptr address, size_t size, CUmem_advise advice, CUdevice device) {
    return emulated_cuMemAdvise_v2(address, size, advice, location_of(device));
}

static int ordinal_of(CUmemLocation location) {
    if (location.type == CU_MEM_LOCATION_TYPE_DEVICE)
        return location.id;
    return location.type == CU_MEM_LOCATION_TYPE_INVALID ? CU_DEVICE_INVALID : CU_DEVICE_CPU;
}

static void list_accessed_by(const Allocation *allocation, int *list, size_t room) {
    size_t n = 0;
    for (int i = 0; i <= MAX_DEVICES && n < room; i++)
        if (allocation->accessed_by >> i & 1)
            list[n++] = i == MAX_DEVICES ? CU_DEVICE_CPU : i;
    while (n < room)
        list[n++] = CU_DEVICE_INVALID;
}

CUresult emulated_cuMemRangeGetAttribute(void *data, size_t data_size, CUmem_range_attribute attribute,
                                         CUdeviceptr address, size_t size) {
    const Allocation *allocation = find(address, size);
    if (!data || !allocation || data_size < sizeof(int) ||
        (attribute != CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY && data_size != sizeof(int)))
        return CUDA_ERROR_INVALID_VALUE;
    int *answer = data;
    switch ((int)attribute) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:
        *answer = allocation->read_mostly;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:
        *answer = ordinal_of(allocation->preferred);
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:
        *answer = ordinal_of(allocation->prefetched);
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY:
        list_accessed_by(allocation, answer, data_size / sizeof(int));
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE:
        *answer = (int)allocation->preferred.type;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID:
        *answer = allocation->preferred.id;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE:
        *answer = (int)allocation->prefetched.type;
        return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID:
        *answer = allocation->prefetched.id;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult emulated_cuMemRangeGetAttributes(void **data, size_t *sizes, CUmem_range_attribute *attributes, size_t n,
                                          CUdeviceptr address, size_t size) {
    if (!data || !sizes || !attributes || !n)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < n && !result; i++)
        result = emulated_cuMemRangeGetAttribute(data[i], sizes[i], attributes[i], address, size);
    return result;
}

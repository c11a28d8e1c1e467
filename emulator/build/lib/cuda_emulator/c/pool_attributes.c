/* Attributes of pools and who may use their memory. */
#include "pool.h"

CUresult emulated_cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value) {
    const Pool *pool = pool_find(handle);
    if (!pool || !value)
        return CUDA_ERROR_INVALID_VALUE;
    switch ((int)attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
        *(int *)value = pool->follow_events;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
        *(int *)value = pool->opportunistic;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        *(int *)value = pool->internal_dependencies;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        *(cuuint64_t *)value = pool->keep;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        *(cuuint64_t *)value = pool->reserved;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        *(cuuint64_t *)value = pool->most_reserved;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        *(cuuint64_t *)value = pool->used;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        *(cuuint64_t *)value = pool->most_used;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult emulated_cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value) {
    Pool *pool = pool_find(handle);
    if (!pool || !value || pool->imported)
        return CUDA_ERROR_INVALID_VALUE;
    switch ((int)attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
        pool->follow_events = *(int *)value;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
        pool->opportunistic = *(int *)value;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        pool->internal_dependencies = *(int *)value;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        pool->keep = *(cuuint64_t *)value;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: /* high marks start again from the present; another value is refused */
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        if (*(cuuint64_t *)value)
            return CUDA_ERROR_INVALID_VALUE;
        *(attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH ? &pool->most_used : &pool->most_reserved) =
            attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH ? pool->used : pool->reserved;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

/* A device that can have no peer access to the pool's device cannot have it to the pool. */
static bool can_have_access(const Pool *pool, int ordinal) {
    return !pool->device || pool->device->ordinal == ordinal || settings.peers[ordinal] >> pool->device->ordinal & 1;
}

CUresult emulated_cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc *map, size_t count) {
    Pool *pool = pool_find(handle);
    if (!pool || (!map && count))
        return CUDA_ERROR_INVALID_VALUE;
    uint32_t access = pool->access;
    for (size_t i = 0; i < count; i++) {
        int ordinal = map[i].location.id;
        if (map[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE)
            return CUDA_ERROR_INVALID_VALUE;
        if (!device_at(ordinal) || !can_have_access(pool, ordinal))
            return CUDA_ERROR_INVALID_DEVICE;
        if (map[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE && pool->device && pool->device->ordinal == ordinal)
            return CUDA_ERROR_INVALID_VALUE;
        access = map[i].flags == CU_MEM_ACCESS_FLAGS_PROT_NONE ? access & ~(1u << ordinal) : access | 1u << ordinal;
    }
    pool->access = access;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool handle, CUmemLocation *location) {
    const Pool *pool = pool_find(handle);
    if (!flags || !pool || !location)
        return CUDA_ERROR_INVALID_VALUE;
    bool host = location->type != CU_MEM_LOCATION_TYPE_DEVICE;
    if (!host && !device_at(location->id))
        return CUDA_ERROR_INVALID_DEVICE;
    bool may = host ? pool->place != PLACE_DEVICE : pool_may_access(pool, &devices[location->id]);
    *flags = may ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    return CUDA_SUCCESS;
}

/* Pools: making and ending them, defaults, attributes and access. What they do with memory is in pool_memory.c. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pool.h"

static Pool *pools;
static Pool *host_default, *managed_default;

Pool *pool_find(CUmemoryPool handle) {
    return object_find(handle, OBJECT_POOL);
}

static Place place_of(const CUmemPoolProps *properties) {
    if (properties->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED)
        return PLACE_MANAGED;
    return properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? PLACE_DEVICE : PLACE_PINNED;
}

Pool *pool_new(const CUmemPoolProps *properties) {
    Pool *pool = claim(sizeof *pool);
    pool->properties = *properties;
    pool->place = place_of(properties);
    pool->device = pool->place == PLACE_DEVICE ? &devices[properties->location.id] : NULL;
    pool->access = pool->device ? 1u << pool->device->ordinal : ~0u;
    pool->follow_events = pool->opportunistic = pool->internal_dependencies = 1;
    pool->file = -1;
    pool->next = pools;
    pools = pool;
    object_open(&pool->object, OBJECT_POOL, NULL);
    return pool;
}

static Pool *kept_default(Pool **pool, CUmemLocation location, CUmemAllocationType type) {
    if (!*pool) {
        CUmemPoolProps properties = {.allocType = type, .location = location};
        *pool = pool_new(&properties);
        (*pool)->is_default = true;
    }
    return *pool;
}

Pool *pool_default(CUmemLocationType where, int id, CUmemAllocationType type) {
    CUmemLocation location = {.type = where, .id = id};
    if (type == CU_MEM_ALLOCATION_TYPE_MANAGED)
        return kept_default(&managed_default, location, type);
    if (type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return NULL;
    if (where == CU_MEM_LOCATION_TYPE_DEVICE)
        return device_at(id) ? kept_default(&devices[id].default_pool, location, type) : NULL;
    bool host = where == CU_MEM_LOCATION_TYPE_HOST || where == CU_MEM_LOCATION_TYPE_HOST_NUMA;
    return host ? kept_default(&host_default, location, type) : NULL;
}

void pool_trim(Pool *pool, size_t keep) {
    size_t least = pool->used > keep ? pool->used : keep;
    if (pool->reserved <= least)
        return;
    if (pool->device)
        device_refund(pool->device, pool->reserved - least);
    pool->reserved = least;
}

void pools_give_back(Device *device) {
    for (Pool *pool = pools; pool; pool = pool->next)
        if (pool->device == device)
            pool_trim(pool, 0);
}

static void pool_free(Pool *pool) {
    Pool **link = &pools;
    while (*link != pool)
        link = &(*link)->next;
    *link = pool->next;
    pool_trim(pool, 0);
    if (pool->file >= 0)
        close(pool->file);
    free(pool);
}

void pool_close(Pool *pool) {
    object_close(&pool->object);
    for (int i = 0; i < settings.devices; i++)
        if (devices[i].pool == pool)
            devices[i].pool = devices[i].default_pool;
    if (!pool->n_allocations)
        pool_free(pool);
}

bool pool_may_access(const Pool *pool, const Device *device) {
    return pool->access >> device->ordinal & 1;
}

CUresult emulated_cuMemPoolCreate(CUmemoryPool *handle, const CUmemPoolProps *properties) {
    if (!handle || !properties)
        return CUDA_ERROR_INVALID_VALUE;
    unsigned shared = properties->handleTypes;
    if (shared & ~(unsigned)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    bool managed = properties->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED;
    if (!managed && !pool_default(properties->location.type, properties->location.id, properties->allocType))
        return CUDA_ERROR_INVALID_VALUE;
    if (managed && shared)
        return CUDA_ERROR_NOT_SUPPORTED;
    Pool *pool = pool_new(properties);
    if (shared && !pool_share(pool)) {
        pool_close(pool);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    *handle = (CUmemoryPool)pool->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemPoolDestroy(CUmemoryPool handle) {
    Pool *pool = pool_find(handle);
    if (!pool || pool->is_default)
        return CUDA_ERROR_INVALID_VALUE;
    pool_close(pool);
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetDefaultMemPool(CUmemoryPool *handle, CUdevice ordinal) {
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *handle = devices[ordinal].default_pool->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetMemPool(CUmemoryPool *handle, CUdevice ordinal) {
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *handle = devices[ordinal].pool->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceSetMemPool(CUdevice ordinal, CUmemoryPool handle) {
    Pool *pool = pool_find(handle);
    if (!device_at(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!pool || pool->device != &devices[ordinal] || pool->imported)
        return CUDA_ERROR_INVALID_VALUE;
    devices[ordinal].pool = pool;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemGetDefaultMemPool(CUmemoryPool *handle, CUmemLocation *location, CUmemAllocationType type) {
    Pool *pool = location ? pool_default(location->type, location->id, type) : NULL;
    if (!handle || !pool)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = pool->object.handle;
    return CUDA_SUCCESS;
}

static bool is_device_pool(const CUmemLocation *location, CUmemAllocationType type) {
    return location && location->type == CU_MEM_LOCATION_TYPE_DEVICE && type == CU_MEM_ALLOCATION_TYPE_PINNED;
}

CUresult emulated_cuMemGetMemPool(CUmemoryPool *handle, CUmemLocation *location, CUmemAllocationType type) {
    if (is_device_pool(location, type))
        return emulated_cuDeviceGetMemPool(handle, location->id);
    return emulated_cuMemGetDefaultMemPool(handle, location, type);
}

CUresult emulated_cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool handle) {
    return is_device_pool(location, type) ? emulated_cuDeviceSetMemPool(location->id, handle)
                                          : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult emulated_cuMemPoolTrimTo(CUmemoryPool handle, size_t keep) {
    Pool *pool = pool_find(handle);
    if (!pool)
        return CUDA_ERROR_INVALID_VALUE;
    pool_trim(pool, keep);
    return CUDA_SUCCESS;
}

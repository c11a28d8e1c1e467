/* What the driver tells about an address. */
#include <string.h>

#include "memory.h"
#include "pool.h"

static unsigned memory_type(const Allocation *allocation) {
    return allocation->place == PLACE_PINNED || allocation->place == PLACE_REGISTERED ? CU_MEMORYTYPE_HOST
                                                                                      : CU_MEMORYTYPE_DEVICE;
}

/* The block that an address lies in is whatever cuMemGetAddressRange says, so RANGE_* and MAPPING_* agree. */
static CUresult answer(void *data, CUpointer_attribute attribute, const Allocation *a, CUdeviceptr address) {
    bool device_only = a->place == PLACE_DEVICE || a->place == PLACE_MAPPED;
    switch ((int)attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = a->context && !a->pool ? a->context->object.handle : NULL;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = memory_type(a);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = address;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        *(void **)data = device_only ? NULL : (void *)address;
        return device_only ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
        *(unsigned char *)data = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
        *(uint64_t *)data = a->id;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned char *)data = a->place == PLACE_MANAGED;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = a->device ? a->device->ordinal : a->context ? a->context->device->ordinal : 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        *(CUdeviceptr *)data = a->address;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        *(size_t *)data = a->size;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(unsigned char *)data = 1;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        *(uint64_t *)data = a->pool ? a->pool->properties.handleTypes : 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        *(unsigned *)data = CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        *(CUmemoryPool *)data = a->pool ? a->pool->object.handle : NULL;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult emulated_cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr address) {
    const Allocation *allocation = allocation_at(address);
    if (!data || !allocation)
        return CUDA_ERROR_INVALID_VALUE;
    return answer(data, attribute, allocation, address);
}

/* How many bytes an attribute has; those of an address that is not CUDA's are zero. */
static size_t size_of(CUpointer_attribute attribute) {
    switch ((int)attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        return 4;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
        return 1;
    default:
        return 8;
    }
}

CUresult emulated_cuPointerGetAttributes(unsigned int n, CUpointer_attribute *attributes, void **data,
                                         CUdeviceptr address) {
    if (!attributes || !data)
        return CUDA_ERROR_INVALID_VALUE;
    const Allocation *allocation = allocation_at(address);
    for (unsigned i = 0; i < n; i++) {
        memset(data[i], 0, size_of(attributes[i]));
        if (!allocation && attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
            *(int *)data[i] = CU_DEVICE_INVALID;
        if (allocation && answer(data[i], attributes[i], allocation, address) == CUDA_ERROR_NOT_SUPPORTED)
            return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult emulated_cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    bool settable =
        attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS; /* every copy of ours is ordered already as it asks */
    return value && settable && allocation_at(address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

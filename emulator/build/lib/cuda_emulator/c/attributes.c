/* Device attributes: one table. What is not in it is 0, as an attribute that the device lacks. */
#include <string.h>

#include "context.h"

typedef struct Attribute {
    CUdevice_attribute name;
    int value;
} Attribute;

#define A(name, value) {CU_DEVICE_ATTRIBUTE_##name, value}

static const Attribute table[] = {
    A(MAX_THREADS_PER_BLOCK, 1024),
    A(MAX_BLOCK_DIM_X, 1024),
    A(MAX_BLOCK_DIM_Y, 1024),
    A(MAX_BLOCK_DIM_Z, 64),
    A(MAX_GRID_DIM_X, 2147483647),
    A(MAX_GRID_DIM_Y, 65535),
    A(MAX_GRID_DIM_Z, 65535),
    A(MAX_SHARED_MEMORY_PER_BLOCK, 49152),
    A(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 49152),
    A(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 65536),
    A(TOTAL_CONSTANT_MEMORY, 65536),
    A(WARP_SIZE, 32),
    A(MAX_PITCH, 2147483647),
    A(MAX_REGISTERS_PER_BLOCK, 65536),
    A(MAX_REGISTERS_PER_MULTIPROCESSOR, 65536),
    A(MAX_THREADS_PER_MULTIPROCESSOR, 2048),
    A(MAX_BLOCKS_PER_MULTIPROCESSOR, 32),
    A(CLOCK_RATE, 1000000),
    A(MEMORY_CLOCK_RATE, 1000000),
    A(GLOBAL_MEMORY_BUS_WIDTH, 128),
    A(L2_CACHE_SIZE, 1048576),
    A(TEXTURE_ALIGNMENT, 512),
    A(TEXTURE_PITCH_ALIGNMENT, 32),
    A(SURFACE_ALIGNMENT, 512),
    A(MULTIPROCESSOR_COUNT, 4),
    A(GPU_OVERLAP, 1),
    A(CAN_MAP_HOST_MEMORY, 1),
    A(COMPUTE_MODE, CU_COMPUTEMODE_DEFAULT),
    A(CONCURRENT_KERNELS, 1),
    A(ASYNC_ENGINE_COUNT, 2),
    A(UNIFIED_ADDRESSING, 1),
    A(STREAM_PRIORITIES_SUPPORTED, 1),
    A(MANAGED_MEMORY, 1),
    A(CONCURRENT_MANAGED_ACCESS, 1),
    A(COMPUTE_PREEMPTION_SUPPORTED, 1),
    A(HOST_REGISTER_SUPPORTED, 1),
    A(CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1),
    A(CAN_USE_64_BIT_STREAM_MEM_OPS, 1),
    A(CAN_USE_STREAM_WAIT_VALUE_NOR, 1),
    A(MEMORY_POOLS_SUPPORTED, 1),
    A(VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1),
    A(HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 1),
    A(MEMPOOL_SUPPORTED_HANDLE_TYPES, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
    A(IPC_EVENT_SUPPORTED, 1),
    A(UNIFIED_FUNCTION_POINTERS, 0),
    A(HOST_MEMORY_POOLS_SUPPORTED, 1),
};

CUresult emulated_cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    if (!value || (int)attribute < 1 || attribute >= CU_DEVICE_ATTRIBUTE_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *value = 0;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        *value = settings.compute_major;
    if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        *value = settings.compute_minor;
    if (attribute == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)
        *value = devices[device].physical + 1;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].name == attribute)
            *value = table[i].value;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetProperties(CUdevprop *properties, CUdevice device) {
    if (!properties)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *properties = (CUdevprop){
        .maxThreadsPerBlock = 1024,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {2147483647, 65535, 65535},
        .sharedMemPerBlock = 49152,
        .totalConstantMemory = 65536,
        .SIMDWidth = 32,
        .memPitch = 2147483647,
        .regsPerBlock = 65536,
        .clockRate = 1000000,
        .textureAlign = 512,
    };
    return CUDA_SUCCESS;
}

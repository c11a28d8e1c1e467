/* What a kernel says about itself. */
#include "kernel.h"

#include "context.h"

static Kernel *find(const void *handle) {
    return object_find(handle, OBJECT_KERNEL);
}

CUresult emulated_cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    if (!function)
        return CUDA_ERROR_INVALID_VALUE;
    if (!find(kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    *function = (CUfunction)kernel;
    return CUDA_SUCCESS;
}

CUresult emulated_cuKernelGetLibrary(CUlibrary *library, CUkernel handle) {
    const Kernel *kernel = find(handle);
    if (!library)
        return CUDA_ERROR_INVALID_VALUE;
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    *library = kernel->image->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuFuncGetModule(CUmodule *module, CUfunction function) {
    return emulated_cuKernelGetLibrary((CUlibrary *)module, (CUkernel)function);
}

CUresult emulated_cuKernelGetName(const char **name, CUkernel handle) {
    const Kernel *kernel = find(handle);
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    *name = kernel->name;
    return CUDA_SUCCESS;
}

CUresult emulated_cuFuncGetName(const char **name, CUfunction function) {
    return emulated_cuKernelGetName(name, (CUkernel)function);
}

CUresult emulated_cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction function) {
    if (!state)
        return CUDA_ERROR_INVALID_VALUE;
    *state = CU_FUNCTION_LOADING_STATE_LOADED;
    return find(function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult emulated_cuFuncLoad(CUfunction function) {
    return find(function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

size_t param_size(const Kernel *kernel, int i) {
    int size = kernel->params[1 + i];
    return (size_t)(size < 0 ? -size : size);
}

/* Aligned as C does it where a size tells the alignment: powers of two to themselves, up to 16; structures to 8. */
static size_t alignment(size_t size) {
    bool power = size && !(size & (size - 1));
    return !power ? (size % 8 ? size % 4 ? 1 : 4 : 8) : size > 16 ? 16 : size;
}

size_t param_offset(const Kernel *kernel, int i) {
    size_t offset = 0;
    for (int j = 0;; j++) {
        offset = round_up(offset, alignment(param_size(kernel, j)));
        if (j == i)
            return offset;
        offset += param_size(kernel, j);
    }
}

CUresult emulated_cuKernelGetParamInfo(CUkernel handle, size_t index, size_t *offset, size_t *size) {
    const Kernel *kernel = find(handle);
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!offset || index >= (size_t)kernel->params[0])
        return CUDA_ERROR_INVALID_VALUE;
    *offset = param_offset(kernel, (int)index);
    if (size)
        *size = param_size(kernel, (int)index);
    return CUDA_SUCCESS;
}

CUresult emulated_cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset, size_t *size) {
    return emulated_cuKernelGetParamInfo((CUkernel)function, index, offset, size);
}

CUresult emulated_cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    const Kernel *kernel = find(function);
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!value || (unsigned)attribute >= CU_FUNC_ATTRIBUTE_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    *value = kernel->attributes[attribute];
    return CUDA_SUCCESS;
}

CUresult emulated_cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    Kernel *kernel = find(function);
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    bool fixed = attribute < CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES; /* what the compiler decided */
    if (fixed || attribute >= CU_FUNC_ATTRIBUTE_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    kernel->attributes[attribute] = value;
    return CUDA_SUCCESS;
}

CUresult emulated_cuKernelGetAttribute(int *value, CUfunction_attribute attribute, CUkernel kernel, CUdevice device) {
    return device_at(device) ? emulated_cuFuncGetAttribute(value, attribute, (CUfunction)kernel)
                             : CUDA_ERROR_INVALID_DEVICE;
}

CUresult emulated_cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device) {
    return device_at(device) ? emulated_cuFuncSetAttribute((CUfunction)kernel, attribute, value)
                             : CUDA_ERROR_INVALID_DEVICE;
}

CUresult emulated_cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) {
    (void)config;
    return emulated_cuFuncLoad(function);
}

CUresult emulated_cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice device) {
    (void)config;
    return device_at(device) ? emulated_cuFuncLoad((CUfunction)kernel) : CUDA_ERROR_INVALID_DEVICE;
}

/* A multiprocessor of ours holds 2048 threads, 32 blocks and 64 KiB of shared memory. */
CUresult emulated_cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block_size,
                                                              size_t shared_bytes) {
    if (!find(function))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!blocks || block_size < 1)
        return CUDA_ERROR_INVALID_VALUE;
    int by_threads = block_size > 1024 ? 0 : 2048 / block_size;
    int by_shared = shared_bytes ? (int)(65536 / shared_bytes) : 32;
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    *blocks = *blocks > 32 ? 32 : *blocks;
    return CUDA_SUCCESS;
}

CUresult emulated_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function, int block_size,
                                                                       size_t shared_bytes, unsigned int flags) {
    (void)flags;
    return emulated_cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_size, shared_bytes);
}

CUresult emulated_cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction function,
                                                   CUoccupancyB2DSize shared_of, size_t shared_bytes, int limit) {
    (void)shared_of, (void)shared_bytes;
    if (!find(function))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!grid || !block)
        return CUDA_ERROR_INVALID_VALUE;
    *block = limit > 0 && limit < 1024 ? limit : 1024;
    *grid = 2 * 4; /* two such blocks on each of four multiprocessors */
    return CUDA_SUCCESS;
}

CUresult emulated_cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, CUfunction function,
                                                            CUoccupancyB2DSize shared_of, size_t shared_bytes,
                                                            int limit, unsigned int flags) {
    (void)flags;
    return emulated_cuOccupancyMaxPotentialBlockSize(grid, block, function, shared_of, shared_bytes, limit);
}

CUresult emulated_cuOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, CUfunction function, int blocks,
                                                          int block_size) {
    if (!find(function))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!bytes || blocks < 1 || block_size < 1)
        return CUDA_ERROR_INVALID_VALUE;
    size_t share = 65536 / (size_t)blocks;
    *bytes = share > 49152 ? 49152 : share;
    return CUDA_SUCCESS;
}

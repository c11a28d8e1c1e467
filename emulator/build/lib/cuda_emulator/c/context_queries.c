/* What a context says about itself, its limits, and the waits for all of it. */
#include "stream.h"
#include "thread.h"

/* The context of a handle, or the current one for NULL. */
static CUresult of(CUcontext handle, Context **context) {
    if (!handle)
        return context_current(context);
    *context = context_find(handle);
    return *context ? context_state(*context) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult emulated_cuCtxGetDevice(CUdevice *device) {
    Context *context = context_top();
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device->ordinal;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxGetDevice_v2(CUdevice *device, CUcontext handle) {
    Context *context = handle ? context_find(handle) : context_top();
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device->ordinal;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxGetFlags(unsigned int *flags) {
    Context *context;
    CUresult result = context_current(&context);
    if (!result && flags)
        *flags = context->flags;
    return result ? result : flags ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuCtxSetFlags(unsigned int flags) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    if (flags & ~(unsigned)CU_CTX_FLAGS_MASK)
        return CUDA_ERROR_INVALID_VALUE;
    context->flags = flags;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxGetId(CUcontext handle, unsigned long long *id) {
    Context *context;
    CUresult result = of(handle, &context);
    if (result)
        return result;
    if (!id)
        return CUDA_ERROR_INVALID_VALUE;
    *id = context->id;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxGetApiVersion(CUcontext handle, unsigned int *version) {
    Context *context;
    CUresult result = of(handle, &context);
    if (result)
        return result;
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = (unsigned)settings.version;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    Context *context;
    CUresult result = context_current(&context);
    if (!result && least)
        *least = 0;
    if (!result && greatest)
        *greatest = -5;
    return result;
}

CUresult emulated_cuCtxGetLimit(size_t *value, CUlimit limit) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    if (!value || (unsigned)limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    *value = context->limits[limit];
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxSetLimit(CUlimit limit, size_t value) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    if ((unsigned)limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    context->limits[limit] = value;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxGetCacheConfig(CUfunc_cache *config) {
    Context *context;
    CUresult result = context_current(&context);
    if (!result && config)
        *config = CU_FUNC_CACHE_PREFER_NONE;
    return result;
}

/* There is no cache to configure: as on devices where its size is fixed, the preference is taken and has no effect. */
CUresult emulated_cuCtxSetCacheConfig(CUfunc_cache config) {
    Context *context;
    (void)config;
    return context_current(&context);
}

CUresult emulated_cuCtxResetPersistingL2Cache(void) {
    Context *context;
    return context_current(&context);
}

CUresult emulated_cuCtxSynchronize_v2(CUcontext handle) {
    Context *context;
    CUresult result = of(handle, &context);
    if (result)
        return result;
    for (Stream *stream = context->streams; stream; stream = stream->next)
        if ((result = stream_not_capturing(stream)))
            return result;
    result = context_wait(context);
    return result ? result : context_check_zones(context);
}

CUresult emulated_cuCtxSynchronize(void) {
    return emulated_cuCtxSynchronize_v2(NULL);
}

/* There is no profiler to start: as with a driver under which none is loaded, the calls do nothing. */
CUresult emulated_cuProfilerStart(void) {
    Context *context;
    return context_current(&context);
}

CUresult emulated_cuProfilerStop(void) {
    Context *context;
    return context_current(&context);
}

/* Launching kernels. A pointer parameter becomes an address that the CPU can use when the kernel's turn comes, and only
 * if the device may use that memory then; every other address is passed on as it is, and the kernel faults if it
 * follows it. So nothing is refused that a device would not refuse, and what a kernel does not touch does no harm. */
#include <stdlib.h>

#include "call.h"
#include "guard.h"
#include "kernel.h"
#include "memory.h"
#include "report.h"
#include "stream.h"

/* Stands for the address of pageable host memory, which a device cannot use. */
#define NO_ADDRESS ((uintptr_t)0x00f0000000000000u)

static CUresult check_shape(const EmulatorShape *shape) {
    static const unsigned most_grid[] = {2147483647, 65535, 65535}, most_block[] = {1024, 1024, 64};
    for (int i = 0; i < 3; i++)
        if (!shape->grid[i] || shape->grid[i] > most_grid[i] || !shape->block[i] || shape->block[i] > most_block[i])
            return CUDA_ERROR_INVALID_VALUE;
    bool fits = shape->block[0] * shape->block[1] * shape->block[2] <= 1024 && shape->shared_bytes <= 49152;
    return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* The buffer of `extra`, or NULL; false if it is not one. */
static bool read_extra(void **extra, const char **buffer, size_t *size) {
    *buffer = NULL;
    *size = 0;
    for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
            *buffer = extra[1];
        else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE)
            *size = *(size_t *)extra[1];
        else
            return false;
    }
    return true;
}

static bool is_stale(uintptr_t address) {
    const Allocation *allocation = allocation_at(address);
    return allocation && allocation->leaving;
}

static CUresult take_params(const Kernel *kernel, void **params, void **extra, Params **taken) {
    const char *buffer;
    size_t size;
    int n = kernel->params[0];
    if (!read_extra(extra, &buffer, &size) || (n && !params && !buffer))
        return CUDA_ERROR_INVALID_VALUE;
    if (buffer && n && param_offset(kernel, n - 1) + param_size(kernel, n - 1) > size)
        return CUDA_ERROR_INVALID_VALUE;
    Params *all = claim(sizeof *all + (size_t)n * sizeof *all->items);
    all->references = 1;
    all->values = claim((size_t)n * sizeof *all->values);
    all->n = n;
    for (int i = 0; i < n; i++) {
        struct Param *param = &all->items[i];
        param->size = param_size(kernel, i);
        param->pointer = kernel->params[1 + i] < 0;
        all->values[i] = claim_copy(buffer ? buffer + param_offset(kernel, i) : params[i], param->size);
        if (param->pointer)
            param->stale = is_stale(*(uintptr_t *)all->values[i]);
    }
    *taken = all;
    return CUDA_SUCCESS;
}

CUresult launch_new(CUfunction function, const EmulatorShape *shape, void **params, void **extra, Context *context,
                    Launch *launch) {
    Kernel *kernel = object_find(function, OBJECT_KERNEL);
    if (!kernel || (kernel->object.context && kernel->object.context != context))
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = check_shape(shape);
    *launch = (Launch){.kernel = kernel, .shape = *shape};
    if (result || (result = take_params(kernel, params, extra, &launch->params)))
        return result;
    kernel->image->references++;
    return CUDA_SUCCESS;
}

void launch_keep(const Launch *launch) {
    launch->params->references++;
    launch->kernel->image->references++;
}

void launch_drop(const Launch *launch) {
    Params *params = launch->params;
    if (--params->references == 0) {
        for (int i = 0; i < params->n; i++)
            free(params->values[i]);
        free(params->values);
        free(params);
    }
    image_drop(launch->kernel->image);
}

static uintptr_t translate(uintptr_t address, bool stale, const Context *context) {
    const Allocation *allocation = allocation_at(address);
    if (!allocation)
        return is_device_address(address) || !address ? address : address | NO_ADDRESS;
    bool usable = !stale && is_usable(allocation) && may_access(context, allocation);
    return usable ? allocation->bytes + (address - allocation->address)
                  : address | (is_device_address(address) ? 0 : NO_ADDRESS);
}

typedef struct Call {
    EmulatorLaunch launch;
    void **params;
    const EmulatorShape *shape;
} Call;

static void call_kernel(const void *data) {
    const Call *call = data;
    call->launch(call->params, call->shape);
}

static void explain(const char *kernel, const Context *context, uintptr_t fault) {
    uintptr_t address = is_device_address(fault) ? fault : address_of_bytes(fault);
    const Allocation *allocation = allocation_at(address);
    const char *why = "where there is no memory of a device (a host address that is not pinned, or a wild pointer)";
    if (allocation && !may_access(context, allocation))
        why = "memory of another device, to which this one has no peer access";
    else if (allocation)
        why = "memory that is not its to use any more or not yet, in the order of its stream";
    else if (is_device_address(address))
        why = "memory that was freed, or beyond an allocation";
    hazard("invalid address", "kernel %s on device %d touched 0x%zx: %s", kernel, context->device->ordinal,
           (size_t)address, why);
}

CUresult launch_run(const Launch *launch, Context *context) {
    const Params *params = launch->params;
    size_t n = (size_t)params->n;
    uintptr_t *addresses = claim(n * sizeof *addresses);
    void **values = claim(n * sizeof *values);
    pthread_mutex_lock(&lock);
    guard_install();
    context->kernels_ran = true;
    for (size_t i = 0; i < n; i++) {
        values[i] = params->values[i];
        if (params->items[i].pointer) {
            addresses[i] = translate(*(uintptr_t *)params->values[i], params->items[i].stale, context);
            values[i] = &addresses[i];
        }
    }
    pthread_mutex_unlock(&lock);
    Call call = {launch->kernel->launch, values, &launch->shape};
    uintptr_t fault = 0;
    bool fine = guarded(call_kernel, &call, &fault);
    if (!fine) {
        pthread_mutex_lock(&lock);
        explain(launch->kernel->name, context, fault);
        pthread_mutex_unlock(&lock);
    }
    free(addresses);
    free(values);
    return fine ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

static CUresult submit(CUfunction function, const EmulatorShape *shape, CUstream handle, void **params, void **extra) {
    Stream *stream;
    Work work = {.kind = WORK_KERNEL};
    CUresult result = stream_find(handle, &stream);
    if (result || (result = launch_new(function, shape, params, extra, stream->context, &work.launch)))
        return result;
    return stream_submit(stream, &work, NULL);
}

CUresult emulated_cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                 unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                 unsigned int shared_bytes, CUstream stream, void **params, void **extra) {
    EmulatorShape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
    return submit(function, &shape, stream, params, extra);
}

/* Attributes that only say how fast it should be are taken; those that change what a launch means are not. */
static bool is_harmless(const CUlaunchAttribute *attribute) {
    switch ((int)attribute->id) {
    case CU_LAUNCH_ATTRIBUTE_IGNORE:
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        return true;
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        return !attribute->value.cooperative;
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        return !attribute->value.programmaticStreamSerializationAllowed;
    default:
        return false;
    }
}

CUresult emulated_cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    if (!config || (config->numAttrs && !config->attrs))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (!is_harmless(&config->attrs[i]))
            return CUDA_ERROR_NOT_SUPPORTED;
    EmulatorShape shape = {{config->gridDimX, config->gridDimY, config->gridDimZ},
                           {config->blockDimX, config->blockDimY, config->blockDimZ},
                           config->sharedMemBytes};
    return submit(function, &shape, config->hStream, params, extra);
}

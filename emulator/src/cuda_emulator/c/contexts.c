/* Contexts: one primary context for each device, others by cuCtxCreate, and the stack of them that each thread has.
 *
 * A primary context is a single record with a single handle for the life of the process; it is alive while it is
 * retained. Ending it (the last release, or a reset) ends all that was made in it, and with it the sticky error: the
 * emulator can go on after a reset where a real driver demands a new process. */
#include <stdio.h>
#include <stdlib.h>

#include "memory.h"
#include "stream.h"
#include "thread.h"

static uint64_t last_id;
static Context *contexts;

Context *contexts_first(void) {
    return contexts;
}

Context *context_new(Device *device) {
    Context *context = claim(sizeof *context);
    context->device = device;
    context->next = contexts;
    contexts = context;
    object_open(&context->object, OBJECT_CONTEXT, NULL);
    return context;
}

Context *context_find(CUcontext handle) {
    return object_find(handle, OBJECT_CONTEXT);
}

Context *context_top(void) {
    Thread *thread = thread_self();
    return thread->n ? thread->stack[thread->n - 1] : NULL;
}

CUresult context_state(const Context *context) {
    if (context->device->lost)
        return CUDA_ERROR_DEVICE_UNAVAILABLE;
    return context->alive ? context->broken : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult context_current(Context **context) {
    *context = context_top();
    return *context ? context_state(*context) : CUDA_ERROR_INVALID_CONTEXT;
}

void context_break(Context *context, CUresult error, const char *what) {
    if (context->broken)
        return;
    context->broken = error;
    say("device %d: %s: %s; every later call with this context fails with it", context->device->ordinal, what,
        error_name(error));
}

void device_lose(Device *device) {
    if (!device->lost)
        say("device %d is lost", device->ordinal);
    device->lost = true;
}

static void start(Context *context, unsigned flags) {
    context->alive = true;
    context->flags = flags;
    context->id = ++last_id;
    context->broken = CUDA_SUCCESS;
    context->peers = 0;
    context->legacy = stream_open(context, CU_STREAM_DEFAULT, 0);
    context->limits[CU_LIMIT_STACK_SIZE] = 1024;
    context->limits[CU_LIMIT_PRINTF_FIFO_SIZE] = 1 << 20;
    context->limits[CU_LIMIT_MALLOC_HEAP_SIZE] = 8 << 20;
}

CUresult context_wait(Context *context) {
    size_t n = 0;
    for (Stream *stream = context->streams; stream; stream = stream->next)
        n++;
    Record **tails = claim(n * sizeof *tails);
    n = 0;
    for (Stream *stream = context->streams; stream; stream = stream->next)
        tails[n++] = record_keep(stream->tail);
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < n; i++) {
        CUresult waited = tails[i] ? record_wait(tails[i]) : CUDA_SUCCESS;
        result = result ? result : waited;
        record_drop(tails[i]);
    }
    free(tails);
    return result;
}

static void close_object(Object *object, void *data) {
    const Context *context = data;
    if (object->context != context)
        return;
    object_end(object);
}

void context_end(Context *context) {
    if (!context->alive)
        return;
    context_wait(context);
    if (!context->alive) /* another thread ended it while the lock was given up */
        return;
    context->alive = false;
    context->legacy = NULL;
    for (Stream *stream = context->streams; stream; stream = stream->next)
        stream->abandoned = true;
    objects_visit(close_object, context);
    allocations_end_of(context);
}

CUresult emulated_cuDevicePrimaryCtxRetain(CUcontext *handle, CUdevice ordinal) {
    Device *device = device_at(ordinal);
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    if (device->lost)
        return CUDA_ERROR_DEVICE_UNAVAILABLE;
    Context *context = device->primary;
    if (!context->alive)
        start(context, context->flags);
    context->retained++;
    *handle = context->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
    Device *device = device_at(ordinal);
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    if (!device->primary->retained)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (--device->primary->retained == 0)
        context_end(device->primary);
    return CUDA_SUCCESS;
}

CUresult emulated_cuDevicePrimaryCtxRelease(CUdevice ordinal) {
    return emulated_cuDevicePrimaryCtxRelease_v2(ordinal);
}

/* Who retained it goes on counting: a real reset leaves the handle valid for them too, with everything in it gone. */
static void reset(Context *context) {
    context_end(context);
    context->flags = 0;
    if (context->retained && !context->alive)
        start(context, 0);
}

void device_restore(Device *device) {
    if (device->lost)
        say("device %d is there again", device->ordinal);
    device->lost = false;
    reset(device->primary);
}

CUresult emulated_cuDevicePrimaryCtxReset_v2(CUdevice ordinal) {
    Device *device = device_at(ordinal);
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    reset(device->primary);
    return CUDA_SUCCESS;
}

CUresult emulated_cuDevicePrimaryCtxReset(CUdevice ordinal) {
    return emulated_cuDevicePrimaryCtxReset_v2(ordinal);
}

CUresult emulated_cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned int flags) {
    Device *device = device_at(ordinal);
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    if (flags & ~(unsigned)CU_CTX_FLAGS_MASK)
        return CUDA_ERROR_INVALID_VALUE;
    device->primary->flags = flags;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDevicePrimaryCtxSetFlags(CUdevice ordinal, unsigned int flags) {
    return emulated_cuDevicePrimaryCtxSetFlags_v2(ordinal, flags);
}

CUresult emulated_cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned int *flags, int *active) {
    Device *device = device_at(ordinal);
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    if (!flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = device->primary->flags;
    *active = device->primary->alive;
    return CUDA_SUCCESS;
}

static void push(Context *context) {
    Thread *thread = thread_self();
    if (thread->n == thread->room) {
        size_t room = thread->room ? thread->room * 2 : 8;
        Context **stack = claim(room * sizeof *stack);
        for (size_t i = 0; i < thread->n; i++)
            stack[i] = thread->stack[i];
        free(thread->stack);
        thread->stack = stack;
        thread->room = room;
    }
    thread->stack[thread->n++] = context;
}

CUresult emulated_cuCtxCreate_v2(CUcontext *handle, unsigned int flags, CUdevice ordinal) {
    Device *device = device_at(ordinal);
    if (!handle || flags & ~(unsigned)CU_CTX_FLAGS_MASK)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device)
        return CUDA_ERROR_INVALID_DEVICE;
    if (device->lost)
        return CUDA_ERROR_DEVICE_UNAVAILABLE;
    Context *context = context_new(device);
    *handle = context->object.handle;
    start(context, flags);
    push(context);
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxCreate_v4(CUcontext *handle, CUctxCreateParams *params, unsigned int flags, CUdevice ordinal) {
    if (params && (params->numExecAffinityParams || params->cigParams))
        return CUDA_ERROR_NOT_SUPPORTED;
    return emulated_cuCtxCreate_v2(handle, flags, ordinal);
}

CUresult emulated_cuCtxCreate_v3(CUcontext *handle, CUexecAffinityParam *params, int n, unsigned int flags,
                                 CUdevice ordinal) {
    if (params || n)
        return CUDA_ERROR_NOT_SUPPORTED;
    return emulated_cuCtxCreate_v2(handle, flags, ordinal);
}

CUresult emulated_cuCtxDestroy_v2(CUcontext handle) {
    Context *context = context_find(handle);
    if (!context || context->device->primary == context)
        return CUDA_ERROR_INVALID_CONTEXT;
    context_end(context);
    object_close(&context->object);
    if (context_top() == context)
        thread_self()->n--;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxDestroy(CUcontext handle) {
    return emulated_cuCtxDestroy_v2(handle);
}

CUresult emulated_cuCtxPushCurrent_v2(CUcontext handle) {
    Context *context = context_find(handle);
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    push(context);
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxPushCurrent(CUcontext handle) {
    return emulated_cuCtxPushCurrent_v2(handle);
}

CUresult emulated_cuCtxPopCurrent_v2(CUcontext *handle) {
    Context *context = context_top();
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    thread_self()->n--;
    if (handle)
        *handle = context->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxPopCurrent(CUcontext *handle) {
    return emulated_cuCtxPopCurrent_v2(handle);
}

CUresult emulated_cuCtxSetCurrent(CUcontext handle) {
    Thread *thread = thread_self();
    Context *context = context_find(handle);
    if (handle && !context)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (thread->n)
        thread->n--;
    if (context)
        push(context);
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxGetCurrent(CUcontext *handle) {
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    Context *context = context_top();
    *handle = context ? context->object.handle : NULL;
    return CUDA_SUCCESS;
}

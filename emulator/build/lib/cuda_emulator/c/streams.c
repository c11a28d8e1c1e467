/* The calls on streams. */
#include "call.h"
#include "capture.h"
#include "memory.h"
#include "stream.h"
#include "thread.h"

CUresult stream_find(CUstream handle, Stream **stream) {
    bool own = handle == CU_STREAM_PER_THREAD || (!handle && call_is_per_thread());
    if (handle && handle != CU_STREAM_PER_THREAD && handle != CU_STREAM_LEGACY) {
        *stream = object_find(handle, OBJECT_STREAM);
        if (!*stream)
            return CUDA_ERROR_INVALID_HANDLE;
    } else {
        Context *context;
        CUresult result = context_current(&context);
        if (result)
            return result;
        *stream = own ? thread_stream(context) : context->legacy;
    }
    call_note("stream", (*stream)->id);
    return context_state((*stream)->context);
}

/* The same for calls that only ask about the stream. */
static CUresult find_to_ask(CUstream handle, const void *answer, Stream **stream) {
    CUresult result = stream_find(handle, stream);
    return result ? result : answer ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

bool stream_idle(const Stream *stream) {
    return !stream->tail || stream->tail->done;
}

CUresult stream_not_capturing(Stream *stream) {
    return stream->capture ? capture_violated(stream) : CUDA_SUCCESS;
}

/* Waiting for the legacy stream waits for what an operation on it would come after, too. */
CUresult stream_wait(Stream *stream) {
    Context *context = stream->context;
    if (stream == context->legacy) {
        Work mark = {.kind = WORK_MARK};
        return stream_run(stream, &mark);
    }
    CUresult result = stream_idle(stream) ? CUDA_SUCCESS : record_wait(stream->tail);
    return result ? result : context_state(context);
}

CUresult emulated_cuStreamCreateWithPriority(CUstream *handle, unsigned int flags, int priority) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    if (!handle || flags & ~(unsigned)CU_STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
    Stream *stream = stream_open(context, flags, priority);
    call_note("stream", stream->id);
    *handle = stream->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamCreate(CUstream *handle, unsigned int flags) {
    return emulated_cuStreamCreateWithPriority(handle, flags, 0);
}

CUresult emulated_cuStreamDestroy_v2(CUstream handle) {
    Stream *stream = object_find(handle, OBJECT_STREAM);
    if (!stream || stream == stream->context->legacy || stream->owner)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult state = context_state(stream->context);
    if (state)
        return state;
    call_note("stream", stream->id);
    stream_close(stream);
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamDestroy(CUstream handle) {
    return emulated_cuStreamDestroy_v2(handle);
}

CUresult emulated_cuStreamSynchronize(CUstream handle) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result || (result = stream_not_capturing(stream)))
        return result;
    Context *context = stream->context;
    result = stream_wait(stream);
    return result ? result : context_check_zones(context);
}

CUresult emulated_cuStreamQuery(CUstream handle) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result || (result = stream_not_capturing(stream)))
        return result;
    bool idle = stream_idle(stream);
    if (stream == stream->context->legacy)
        for (const Stream *other = stream->context->streams; other; other = other->next)
            idle = idle && (other->flags & CU_STREAM_NON_BLOCKING || stream_idle(other));
    return idle ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult emulated_cuStreamGetPriority(CUstream handle, int *priority) {
    Stream *stream;
    CUresult result = find_to_ask(handle, priority, &stream);
    if (!result)
        *priority = stream->priority;
    return result;
}

CUresult emulated_cuStreamGetFlags(CUstream handle, unsigned int *flags) {
    Stream *stream;
    CUresult result = find_to_ask(handle, flags, &stream);
    if (!result)
        *flags = stream->flags;
    return result;
}

CUresult emulated_cuStreamGetId(CUstream handle, unsigned long long *id) {
    Stream *stream;
    CUresult result = find_to_ask(handle, id, &stream);
    if (!result)
        *id = stream->id;
    return result;
}

CUresult emulated_cuStreamGetDevice(CUstream handle, CUdevice *device) {
    Stream *stream;
    CUresult result = find_to_ask(handle, device, &stream);
    if (!result)
        *device = stream->context->device->ordinal;
    return result;
}

CUresult emulated_cuStreamGetCtx(CUstream handle, CUcontext *context) {
    Stream *stream;
    CUresult result = find_to_ask(handle, context, &stream);
    if (!result)
        *context = stream->context->object.handle;
    return result;
}

CUresult emulated_cuStreamGetCtx_v2(CUstream handle, CUcontext *context, CUgreenCtx *green) {
    if (green)
        *green = NULL;
    return emulated_cuStreamGetCtx(handle, context);
}

CUresult emulated_cuStreamGetGreenCtx(CUstream handle, CUgreenCtx *green) {
    Stream *stream;
    CUresult result = find_to_ask(handle, green, &stream);
    if (!result)
        *green = NULL;
    return result;
}

static bool has_attribute(CUstreamAttrID attribute) {
    return attribute == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW ||
           attribute == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY || attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY ||
           attribute == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN || attribute == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP;
}

CUresult emulated_cuStreamGetAttribute(CUstream handle, CUstreamAttrID attribute, CUstreamAttrValue *value) {
    Stream *stream;
    CUresult result = find_to_ask(handle, value, &stream);
    if (result || !has_attribute(attribute))
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    *value = stream->attributes[attribute];
    if (attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY)
        value->priority = stream->priority;
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamSetAttribute(CUstream handle, CUstreamAttrID attribute, const CUstreamAttrValue *value) {
    Stream *stream;
    CUresult result = find_to_ask(handle, value, &stream);
    if (result || !has_attribute(attribute))
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    stream->attributes[attribute] = *value;
    if (attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY)
        stream->priority = value->priority;
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamCopyAttributes(CUstream target_handle, CUstream source_handle) {
    Stream *target, *source;
    CUresult result = stream_find(target_handle, &target);
    if (result || (result = stream_find(source_handle, &source)))
        return result;
    for (int i = 0; i < CU_LAUNCH_ATTRIBUTE_MAX; i++)
        target->attributes[i] = source->attributes[i];
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamAttachMemAsync(CUstream handle, CUdeviceptr address, size_t size, unsigned int flags) {
    Stream *stream;
    (void)size, (void)flags;
    CUresult result = stream_find(handle, &stream);
    const Allocation *allocation = allocation_at(address);
    if (result || !allocation || allocation->place != PLACE_MANAGED)
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    Work mark = {.kind = WORK_MARK};
    return stream_submit(stream, &mark, NULL);
}

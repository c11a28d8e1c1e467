/* Events. An event names the record of the operation that recorded it last; see queue.c. */
#include <stdlib.h>

#include "capture.h"
#include "event.h"
#include "stream.h"

CUresult event_find(CUevent handle, Event **event) {
    *event = object_find(handle, OBJECT_EVENT);
    return *event ? context_state((*event)->object.context) : CUDA_ERROR_INVALID_HANDLE;
}

Event *event_open(Context *context, unsigned flags) {
    Event *event = claim(sizeof *event);
    event->flags = flags;
    object_open(&event->object, OBJECT_EVENT, context);
    return event;
}

void event_end(Event *event) {
    object_close(&event->object);
    record_drop(event->record);
    beacon_drop(event->beacon);
    capture_forget(event);
    free(event);
}

void event_set(Event *event, Record *record) {
    capture_forget(event);
    record_drop(event->record);
    event->record = record;
}

CUresult emulated_cuEventCreate(CUevent *handle, unsigned int flags) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    bool untimed = flags & CU_EVENT_DISABLE_TIMING;
    if (!handle || flags & ~known || (flags & CU_EVENT_INTERPROCESS && !untimed))
        return CUDA_ERROR_INVALID_VALUE;
    Beacon *beacon = flags & CU_EVENT_INTERPROCESS ? beacon_new() : NULL;
    if (flags & CU_EVENT_INTERPROCESS && !beacon)
        return CUDA_ERROR_OPERATING_SYSTEM;
    Event *event = event_open(context, flags);
    event->beacon = beacon;
    *handle = event->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuEventDestroy_v2(CUevent handle) {
    Event *event;
    CUresult result = event_find(handle, &event);
    if (!result)
        event_end(event);
    return result;
}

CUresult emulated_cuEventDestroy(CUevent handle) {
    return emulated_cuEventDestroy_v2(handle);
}

CUresult emulated_cuEventRecordWithFlags(CUevent event_handle, CUstream stream_handle, unsigned int flags) {
    Event *event;
    Stream *stream;
    CUresult result = event_find(event_handle, &event);
    if (result || (result = stream_find(stream_handle, &stream)))
        return result;
    if (flags & ~(unsigned)CU_EVENT_RECORD_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    if (event->object.context != stream->context)
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture)
        return capture_record(stream, event, flags & CU_EVENT_RECORD_EXTERNAL);
    if (event->beacon)
        return event_announce(event, stream);
    Work mark = {.kind = WORK_MARK};
    Record *record;
    result = stream_submit(stream, &mark, &record);
    if (!result)
        event_set(event, record);
    return result;
}

CUresult emulated_cuEventRecord(CUevent event, CUstream stream) {
    return emulated_cuEventRecordWithFlags(event, stream, 0);
}

static CUresult mark_after(Stream *stream, Record *record) {
    Work mark = {.kind = WORK_MARK};
    Order after = {0};
    order_add(&after, record);
    return stream_submit_after(stream, &mark, &after, NULL);
}

CUresult emulated_cuStreamWaitEvent(CUstream stream_handle, CUevent event_handle, unsigned int flags) {
    Event *event;
    Stream *stream;
    CUresult result = stream_find(stream_handle, &stream);
    if (result || (result = event_find(event_handle, &event)))
        return result;
    if (flags & ~(unsigned)CU_EVENT_WAIT_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    if (event->captured || stream->capture)
        return capture_wait(stream, event, flags & CU_EVENT_WAIT_EXTERNAL);
    if (event->beacon)
        return event_await(event, stream);
    if (event_is_done(event))
        return CUDA_SUCCESS;
    return mark_after(stream, event->record);
}

CUresult emulated_cuEventQuery(CUevent handle) {
    Event *event;
    CUresult result = event_find(handle, &event);
    if (result)
        return result;
    if (event->captured)
        return CUDA_ERROR_CAPTURED_EVENT;
    return event_is_done(event) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult emulated_cuEventSynchronize(CUevent handle) {
    Event *event;
    CUresult result = event_find(handle, &event);
    if (result)
        return result;
    if (event->captured)
        return CUDA_ERROR_CAPTURED_EVENT;
    Context *context = event->object.context;
    result = event_wait(event);
    return result ? result : context_state(context);
}

CUresult emulated_cuEventElapsedTime_v2(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    Event *start, *end;
    CUresult result = event_find(start_handle, &start);
    if (result || (result = event_find(end_handle, &end)))
        return result;
    if (!milliseconds)
        return CUDA_ERROR_INVALID_VALUE;
    if (!start->record || !end->record || (start->flags | end->flags) & CU_EVENT_DISABLE_TIMING)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!start->record->done || !end->record->done)
        return CUDA_ERROR_NOT_READY;
    uint64_t last = end->record->end_ns + end->record->ahead_ns;
    *milliseconds = (float)((double)(int64_t)(last - start->record->end_ns - start->record->ahead_ns) / 1e6);
    return CUDA_SUCCESS;
}

CUresult emulated_cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    return emulated_cuEventElapsedTime_v2(milliseconds, start, end);
}

/* Every stream of the context, as far as it was submitted now. */
CUresult emulated_cuCtxRecordEvent(CUcontext context_handle, CUevent event_handle) {
    Event *event;
    Context *context = context_find(context_handle);
    CUresult result = event_find(event_handle, &event);
    if (result || !context || event->object.context != context)
        return result ? result : CUDA_ERROR_INVALID_HANDLE;
    Stream *helper = stream_open(context, CU_STREAM_NON_BLOCKING, 0);
    Work mark = {.kind = WORK_MARK};
    Order after = {0};
    for (const Stream *stream = context->streams; stream; stream = stream->next)
        order_add(&after, stream->tail);
    Record *record;
    result = stream_submit_after(helper, &mark, &after, &record);
    if (!result)
        event_set(event, record);
    stream_close(helper);
    return result;
}

CUresult emulated_cuCtxWaitEvent(CUcontext context_handle, CUevent event_handle) {
    Event *event;
    Context *context = context_find(context_handle);
    CUresult result = event_find(event_handle, &event);
    if (result || !context)
        return result ? result : CUDA_ERROR_INVALID_CONTEXT;
    for (Stream *stream = context->streams; stream && !result; stream = stream->next)
        if (!stream->closing)
            result = mark_after(stream, event->record);
    return result;
}

/* Events between processes. Their recording and waiting are operations like others, on the shared page instead of on a
 * record. */
#include "event.h"

CUresult event_announce(Event *event, Stream *stream) {
    Work work = {.kind = WORK_SIGNAL, .signal = {beacon_keep(event->beacon), beacon_announce(event->beacon)}};
    return stream_submit(stream, &work, NULL);
}

CUresult event_await(const Event *event, Stream *stream) {
    uint32_t number = beacon_latest(event->beacon);
    if (beacon_has_reached(event->beacon, number))
        return CUDA_SUCCESS;
    Work work = {.kind = WORK_AWAIT, .signal = {beacon_keep(event->beacon), number}};
    return stream_submit(stream, &work, NULL);
}

bool event_is_done(const Event *event) {
    if (event->beacon)
        return beacon_has_reached(event->beacon, beacon_latest(event->beacon));
    return !event->record || event->record->done;
}

CUresult event_wait(const Event *event) {
    if (!event->beacon)
        return event_is_done(event) ? CUDA_SUCCESS : record_wait(event->record);
    Beacon *beacon = beacon_keep(event->beacon);
    uint32_t number = beacon_latest(beacon);
    pthread_mutex_unlock(&lock);
    bool reached = beacon_wait(beacon, number);
    pthread_mutex_lock(&lock);
    beacon_drop(beacon);
    return reached ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

CUresult emulated_cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event_handle) {
    Event *event;
    CUresult result = event_find(event_handle, &event);
    if (result)
        return result;
    if (!handle || !event->beacon)
        return CUDA_ERROR_INVALID_VALUE;
    beacon_describe(event->beacon, handle);
    return CUDA_SUCCESS;
}

CUresult emulated_cuIpcOpenEventHandle(CUevent *event_handle, CUipcEventHandle handle) {
    Context *context;
    CUresult result = context_current(&context);
    if (result)
        return result;
    Beacon *beacon = event_handle ? beacon_open(&handle) : NULL;
    if (!beacon)
        return CUDA_ERROR_INVALID_VALUE;
    Event *event = event_open(context, CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS);
    event->beacon = beacon;
    *event_handle = event->object.handle;
    return CUDA_SUCCESS;
}

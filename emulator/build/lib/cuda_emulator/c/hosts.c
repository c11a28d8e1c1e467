/* Host functions and stream callbacks: the client's code in a stream's order. */
#include "stream.h"

CUresult emulated_cuLaunchHostFunc(CUstream handle, CUhostFn function, void *data) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result)
        return result;
    if (!function)
        return CUDA_ERROR_INVALID_VALUE;
    Work work = {.kind = WORK_HOST, .host = {.function = function, .data = data}};
    return stream_submit(stream, &work, NULL);
}

CUresult emulated_cuStreamAddCallback(CUstream handle, CUstreamCallback callback, void *data, unsigned int flags) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result || (result = stream_not_capturing(stream)))
        return result;
    if (!callback || flags)
        return CUDA_ERROR_INVALID_VALUE;
    Work work = {.kind = WORK_HOST, .host = {.callback = callback, .data = data, .stream = handle}};
    return stream_submit(stream, &work, NULL);
}

/* Stream capture: calls on a capturing stream become nodes of a graph. */
#ifndef EMULATOR_CAPTURE_H
#define EMULATOR_CAPTURE_H

#include "event.h"
#include "graph.h"
#include "pool.h"

/* Adds a node, whose content it takes over, behind what the stream captured last. */
CUresult capture_add(Stream *stream, Content content);

CUresult capture_allocate(Stream *stream, Pool *pool, size_t size, CUdeviceptr *address);
CUresult capture_free(Stream *stream, CUdeviceptr address);

/* cuEventRecord and cuStreamWaitEvent where the stream or the event is in a capture. */
CUresult capture_record(Stream *stream, Event *event, bool external);
CUresult capture_wait(Stream *stream, Event *event, bool external);

/* The event stands for no point of a capture any more. */
void capture_forget(Event *event);

/* A call that must not be made for a capturing stream: the capture is spoilt, and this is the error. */
CUresult capture_violated(Stream *stream);

/* The stream is destroyed while it captures. */
void capture_abandon(Stream *stream);

/* Calls such as cuMemAlloc may not be made while certain captures run: the error, or CUDA_SUCCESS. */
CUresult capture_forbids_unsafe_calls(void);

/* Work on the legacy stream would come between the captures of its context's blocking streams. */
CUresult capture_forbids_legacy(const Context *context);

#endif

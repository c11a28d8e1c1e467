/* What the emulator keeps for each thread of the client. */
#ifndef EMULATOR_THREAD_H
#define EMULATOR_THREAD_H

#include "context.h"

typedef struct Thread {
    Context **stack; /* the last one is current; NULL as an entry: none */
    size_t n, room;
    Stream *streams; /* its own default streams, one for each context that it used one of; linked by `sibling` */
    bool in_host_function;
    CUstreamCaptureMode capture_mode;
} Thread;

Thread *thread_self(void);

/* The calling thread's own default stream of the context. */
Stream *thread_stream(Context *context);

/* A stream that is being closed is not its thread's any more. */
void thread_forget_stream(Stream *stream);

#endif

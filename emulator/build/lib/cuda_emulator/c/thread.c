/* The state of a thread: its stack of contexts and its own default streams. The thread alone uses its stack; its
 * streams belong to the lock, since the end of a context closes them from another thread. */
#include <stdlib.h>

#include "stream.h"
#include "thread.h"

static _Thread_local Thread *self;
static pthread_key_t end_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void thread_end(void *data) {
    Thread *thread = data;
    pthread_mutex_lock(&lock);
    while (thread->streams)
        stream_close(thread->streams);
    pthread_mutex_unlock(&lock);
    free(thread->stack);
    free(thread);
    self = NULL;
}

static void make_key(void) {
    pthread_key_create(&end_key, thread_end);
}

Thread *thread_self(void) {
    if (!self) {
        pthread_once(&once, make_key);
        self = claim(sizeof *self);
        pthread_setspecific(end_key, self);
    }
    return self;
}

Stream *thread_stream(Context *context) {
    Thread *thread = thread_self();
    for (Stream *stream = thread->streams; stream; stream = stream->sibling)
        if (stream->context == context)
            return stream;
    Stream *stream = stream_open(context, CU_STREAM_DEFAULT, 0);
    stream->owner = thread;
    stream->sibling = thread->streams;
    thread->streams = stream;
    return stream;
}

void thread_forget_stream(Stream *stream) {
    if (!stream->owner)
        return;
    Stream **link = &stream->owner->streams;
    while (*link != stream)
        link = &(*link)->sibling;
    *link = stream->sibling;
    stream->owner = NULL;
}

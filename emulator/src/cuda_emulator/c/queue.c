/* How streams run their operations.
 *
 * Records. Each operation has a Record, which is done when it has run. An event is a pointer to the record of the
 * operation that stood in the stream when it was recorded, and a wait is an operation with somebody else's record in
 * its `after`. A record lives as long as somebody refers to it: the operation in the queue, the stream (its `tail`),
 * events, and other operations' `after`.
 *
 * Order. A stream is a list of operations and a thread, its worker, that takes them one by one: waits for `after`,
 * delays by the seed's jitter, runs, completes the record. `after` only ever names records of operations submitted
 * before, so nothing waits in a circle. The worker starts with the first operation and ends when the stream is closed
 * and its queue is empty; it, or the close of a stream that never had one, frees the stream.
 *
 * Default streams. An operation on the legacy stream comes after everything submitted so far to the context's blocking
 * streams (those without CU_STREAM_NON_BLOCKING, threads' own default streams included), and an operation on a blocking
 * stream comes after everything submitted so far to the legacy stream. Both are made when the operation is submitted,
 * by taking the other streams' tails into `after`: workers know nothing of default streams. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "capture.h"
#include "faults.h"
#include "report.h"
#include "stream.h"
#include "thread.h"
#include "trace.h"

Record *record_new(void) {
    Record *record = claim(sizeof *record);
    record->references = 1;
    cond_init(&record->changed);
    return record;
}

Record *record_keep(Record *record) {
    if (record)
        record->references++;
    return record;
}

void record_drop(Record *record) {
    if (record && --record->references == 0) {
        pthread_cond_destroy(&record->changed);
        free(record);
    }
}

void record_complete(Record *record, const Device *device) {
    record->done = true;
    record->end_ns = now_ns();
    record->ahead_ns = device->ahead_ns;
    pthread_cond_broadcast(&record->changed);
}

CUresult record_wait(Record *record) {
    struct timespec until = timespec_of(now_ns() + settings.timeout_ns);
    record_keep(record);
    bool in_time = true;
    while (!record->done && in_time)
        in_time = pthread_cond_timedwait(&record->changed, &lock, &until) == 0;
    bool done = record->done;
    record_drop(record);
    if (!done)
        report_timeout();
    return done ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

void order_add(Order *order, Record *record) {
    if (!record || record->done)
        return;
    order->records = realloc(order->records, (order->n + 1) * sizeof *order->records);
    if (!order->records)
        abort();
    order->records[order->n++] = record_keep(record);
}

void order_end(Order *order) {
    for (size_t i = 0; i < order->n; i++)
        record_drop(order->records[i]);
    free(order->records);
    *order = (Order){0};
}

static void operation_free(Operation *operation) {
    order_end(&operation->after);
    record_drop(operation->record);
    work_release(&operation->work);
    free(operation);
}

static CUresult perform(const Stream *stream, const Operation *operation) {
    CUresult state = stream->abandoned ? CUDA_ERROR_CONTEXT_IS_DESTROYED : context_state(stream->context);
    if (state && !work_survives(&operation->work))
        return state;
    if (operation->fault && !state)
        return operation->fault;
    pthread_mutex_unlock(&lock);
    delay(stream->id, operation->number);
    CUresult result = work_run(&operation->work, stream->context, state);
    pthread_mutex_lock(&lock);
    return result;
}

static void run(Stream *stream, Operation *operation) {
    for (size_t i = 0; i < operation->after.n; i++) {
        Record *record = operation->after.records[i];
        while (!record->done)
            pthread_cond_wait(&record->changed, &lock);
    }
    stream->running = operation;
    uint64_t start = now_ns();
    CUresult result = perform(stream, operation);
    if (result && !stream->abandoned && !context_state(stream->context))
        work_blame(&operation->work, stream->context, result);
    stream->running = NULL;
    record_complete(operation->record, stream->context->device);
    if (trace_is_on())
        trace_operation(work_kind_name(&operation->work), work_name(&operation->work), stream->id,
                        stream->context->device->ordinal, operation->queued_ns, start, operation->record->end_ns,
                        work_bytes(&operation->work), result);
    operation_free(operation);
}

static void stream_free(Stream *stream) {
    Stream **link = &stream->context->streams;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    record_drop(stream->tail);
    pthread_cond_destroy(&stream->wake);
    free(stream);
}

static void *worker(void *data) {
    Stream *stream = data;
    char name[16];
    snprintf(name, sizeof name, "cuda stream %llu", (unsigned long long)stream->id % 1000);
    pthread_setname_np(pthread_self(), name);
    thread_self()->in_host_function = true; /* whatever of the client's runs here must not call the driver */
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!stream->first && !stream->closing)
            pthread_cond_wait(&stream->wake, &lock);
        Operation *operation = stream->first;
        if (!operation)
            break;
        stream->first = operation->next;
        if (!stream->first)
            stream->end = &stream->first;
        run(stream, operation);
    }
    stream_free(stream);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* The client's signal handlers belong to its own threads; only faults of what a worker itself does come to it. */
static bool start_worker(Stream *stream) {
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    stream->has_worker = pthread_create(&thread, &attributes, worker, stream) == 0;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return stream->has_worker;
}

static uint64_t last_id;

Stream *stream_open(Context *context, unsigned flags, int priority) {
    Stream *stream = claim(sizeof *stream);
    stream->context = context;
    stream->id = ++last_id;
    stream->flags = flags;
    stream->priority = priority;
    stream->end = &stream->first;
    cond_init(&stream->wake);
    stream->next = context->streams;
    context->streams = stream;
    object_open(&stream->object, OBJECT_STREAM, context);
    return stream;
}

void stream_close(Stream *stream) {
    object_close(&stream->object);
    thread_forget_stream(stream);
    capture_abandon(stream);
    stream->closing = true;
    if (stream->has_worker)
        pthread_cond_signal(&stream->wake);
    else
        stream_free(stream);
}

static void order_by_default_streams(const Stream *stream, Order *after) {
    Context *context = stream->context;
    if (stream == context->legacy) {
        for (Stream *other = context->streams; other; other = other->next)
            if (other != stream && !(other->flags & CU_STREAM_NON_BLOCKING))
                order_add(after, other->tail);
    } else if (!(stream->flags & CU_STREAM_NON_BLOCKING)) {
        order_add(after, context->legacy->tail);
    }
}

CUresult stream_submit_after(Stream *stream, Work *work, Order *after, Record **record) {
    if (record)
        *record = NULL;
    if (stream->capture) {
        order_end(after); /* waits of a captured stream are made by capture_wait */
        return capture_add(stream, content_of_work(work, stream->context));
    }
    CUresult forbidden = stream == stream->context->legacy ? capture_forbids_legacy(stream->context) : CUDA_SUCCESS;
    if (forbidden) {
        order_end(after);
        work_release(work);
        return forbidden;
    }
    if (!stream->has_worker && !start_worker(stream)) {
        order_end(after);
        work_release(work);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    Operation *operation = claim(sizeof *operation);
    operation->work = *work;
    operation->record = record_new();
    operation->number = ++stream->submitted;
    operation->queued_ns = now_ns();
    operation->fault = fault_of_work(work_kind_name(work), stream->context->device->ordinal);
    operation->after = *after;
    order_by_default_streams(stream, &operation->after);
    record_drop(stream->tail);
    stream->tail = record_keep(operation->record);
    if (record)
        *record = record_keep(operation->record);
    *stream->end = operation;
    stream->end = &operation->next;
    pthread_cond_signal(&stream->wake);
    return CUDA_SUCCESS;
}

CUresult stream_submit(Stream *stream, Work *work, Record **record) {
    Order after = {0};
    return stream_submit_after(stream, work, &after, record);
}

CUresult stream_run(Stream *stream, Work *work) {
    Record *record;
    CUresult result = stream_submit(stream, work, &record);
    if (result || !record)
        return result;
    Context *context = stream->context; /* the stream may be gone after the wait, the context's record is not */
    result = record_wait(record);
    record_drop(record);
    return result ? result : context_state(context);
}

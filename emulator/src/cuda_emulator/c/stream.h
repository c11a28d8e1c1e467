/* Streams: what they run, when it is done, and how it is ordered. */
#ifndef EMULATOR_STREAM_H
#define EMULATOR_STREAM_H

#include "context.h"
#include "work.h"

/* The completion of one operation. Whoever keeps a pointer to it counts in `references`. */
typedef struct Record {
    int references;
    bool done;
    uint64_t end_ns;
    uint64_t ahead_ns; /* of the device, at its end */
    pthread_cond_t changed;
} Record;

Record *record_new(void);
Record *record_keep(Record *record); /* takes NULL */
void record_drop(Record *record); /* takes NULL */
void record_complete(Record *record, const Device *device);

/* Waits for it, the lock given up meanwhile; CUDA_ERROR_UNKNOWN after the time limit of the settings. */
CUresult record_wait(Record *record);

/* Records that something comes after. */
typedef struct Order {
    Record **records;
    size_t n;
} Order;

void order_add(Order *order, Record *record); /* ignores NULL and what is done already */
void order_end(Order *order);

typedef struct Operation {
    struct Operation *next;
    Work work;
    Record *record;
    Order after; /* beside the operation before it */
    CUresult fault; /* injected */
    uint64_t number; /* in its stream, from 1 */
    uint64_t queued_ns;
} Operation;

struct Stream {
    Object object;
    Context *context;
    uint64_t id;
    unsigned flags; /* CU_STREAM_NON_BLOCKING */
    int priority;
    Operation *first, **end; /* queued */
    const Operation *running;
    Record *tail; /* of the operation submitted last; NULL: none yet */
    uint64_t submitted;
    bool has_worker;
    bool closing; /* runs what is queued, then ends */
    bool abandoned; /* its context has ended: what is still queued is not run */
    pthread_cond_t wake;
    struct Capture *capture; /* NULL: not capturing */
    CUstreamAttrValue attributes[CU_LAUNCH_ATTRIBUTE_MAX];
    Stream *next; /* of the context */
    struct Thread *owner; /* whose default stream it is; NULL: no thread's */
    Stream *sibling; /* of the owner */
};

Stream *stream_open(Context *context, unsigned flags, int priority);
void stream_close(Stream *stream);

/* The stream that a handle means in this call (NULL, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD included), its context
 * usable. */
CUresult stream_find(CUstream handle, Stream **stream);

/* Takes over `work`: queues it behind what default-stream order demands, or adds it to the graph that the stream
 * captures. `record` (may be NULL) is set to a record that the caller must drop; NULL while capturing. */
CUresult stream_submit(Stream *stream, Work *work, Record **record);

/* The same for an operation that also comes after what `after` names, which is taken over too. */
CUresult stream_submit_after(Stream *stream, Work *work, Order *after, Record **record);

/* Submits and waits. */
CUresult stream_run(Stream *stream, Work *work);

/* Refuses what may not be called for a stream that captures. */
CUresult stream_not_capturing(Stream *stream);

CUresult stream_wait(Stream *stream);
bool stream_idle(const Stream *stream);

#endif

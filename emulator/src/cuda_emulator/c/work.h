/* What an operation does. The same value stands in a stream's queue and in a graph's node. */
#ifndef EMULATOR_WORK_H
#define EMULATOR_WORK_H

#include "emulator.h"
#include "kernel_abi.h"

typedef struct Context Context;
typedef struct Allocation Allocation;

typedef enum WorkKind {
    WORK_MARK, /* nothing: an event, or only a wait */
    WORK_COPY,
    WORK_FILL,
    WORK_KERNEL,
    WORK_HOST,
    WORK_ALLOC,
    WORK_FREE,
    WORK_GRAPH,
    WORK_SIGNAL, /* an event of several processes: its record */
    WORK_AWAIT, /* and its wait */
    WORK_TIME, /* time that passes by the clock of events alone */
    N_WORK_KINDS
} WorkKind;

/* A box of bytes; addresses are of devices or of the host, as the client gave them. */
typedef struct Copy {
    uintptr_t target, source;
    size_t width, height, depth; /* bytes, rows, slices */
    size_t target_pitch, target_slice, source_pitch, source_slice; /* bytes from row to row, from slice to slice */
    void *staged; /* a copy of pageable memory, which is the source; owned */
} Copy;

typedef struct Fill {
    uintptr_t target;
    size_t pitch, width, height; /* bytes, elements, rows */
    unsigned element, value; /* bytes of an element: 1, 2, 4 */
} Fill;

/* The values of a kernel's parameters, shared by all copies of the work. */
typedef struct Params {
    int references;
    int n;
    void **values;
    struct Param {
        size_t size;
        bool pointer;
        bool stale; /* its free was already submitted when the launch was */
    } items[];
} Params;

typedef struct Launch {
    struct Kernel *kernel;
    EmulatorShape shape;
    Params *params;
} Launch;

typedef struct HostCall {
    CUhostFn function;
    void *data;
    CUstreamCallback callback; /* instead of `function` */
    CUstream stream; /* told to the callback */
} HostCall;

typedef struct Work {
    WorkKind kind;
    union {
        Copy copy;
        Fill fill;
        Launch launch;
        HostCall host;
        Allocation *allocation; /* to free */
        struct GraphRun *graph;
        struct Signal {
            struct Beacon *beacon;
            uint32_t number;
        } signal;
        uint64_t nanoseconds; /* that pass */
    };
} Work;

/* Does it; called without the lock. `state` is the context's, CUDA_SUCCESS but for work that survives. An error breaks
 * the context. */
CUresult work_run(const Work *work, Context *context, CUresult state);

/* Whether it is done in a broken context too: a callback that is told the error. */
bool work_survives(const Work *work);

/* Breaks the context, naming the work. */
void work_blame(const Work *work, Context *context, CUresult error);

/* Bytes from the first to the last that the work touches, gaps between rows included. */
size_t copy_target_extent(const Copy *copy);
size_t copy_source_extent(const Copy *copy);
size_t fill_extent(const Fill *fill);

/* Another value that does the same; both are released. */
Work work_copy(const Work *work);
void work_release(Work *work);

const char *work_kind_name(const Work *work); /* "kernel", "copy", ... as fault texts and traces say */
const char *work_name(const Work *work); /* of a kernel, else "" */

uint64_t work_bytes(const Work *work);

#endif

/* What stands around every call: the lock, the refusals that all calls share, injected faults, and the trace.
 *
 * The lock. One mutex guards every record of the emulator. A call holds it from call_begin to call_end, so an
 * implementation is plain sequential code. It is given up while a host thread or a worker waits, while a worker runs an
 * operation, and while code of a kernel image runs that is loaded or unloaded. So neither the client's code nor copies
 * run under it, and nothing that waits holds it. After that anything may have changed: whoever gives it up keeps what
 * it needs by a reference (Record) or looks it up again. The lock is never taken twice by a thread, and no other lock
 * is taken under it.
 *
 * Fork. A child has the records but none of the workers, so there every call fails with CUDA_ERROR_NOT_INITIALIZED, as
 * the driver's do, if the parent had called cuInit. */
#include <string.h>

#include "call.h"
#include "context.h"
#include "faults.h"
#include "memory.h"
#include "report.h"
#include "thread.h"
#include "trace.h"

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

enum {
    FREE_CALL = 1, /* works before cuInit and in a host function */
    NEEDS_HEALTH = 2, /* fails with the sticky error of the current context */
};

static struct {
    unsigned char traits;
    uint64_t count;
} *calls;

static bool open;
static bool forked;

enum { OUTSIDE = -1 };

static _Thread_local struct {
    int index; /* CALL_..., or OUTSIDE */
    bool per_thread;
    uint64_t start;
    int n_notes;
    Note notes[MAX_NOTES];
} call = {.index = OUTSIDE};

static bool starts_with_one_of(const char *name, const char *const *prefixes) {
    for (; *prefixes; prefixes++)
        if (!strncmp(name, *prefixes, strlen(*prefixes)))
            return true;
    return false;
}

static void start_again_in_child(void) {
    pthread_mutex_init(&lock, NULL);
    forked = open;
}

__attribute__((constructor)) static void sort_calls(void) {
    static const char *const free_calls[] = {
        "cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString", "cuGetProcAddress", "cuGetExportTable",
        NULL};
    static const char *const healthy_calls[] = {"cuMem",       "cuStream", "cuEvent",          "cuLaunch", "cuModule",
                                                "cuLibrary",   "cuKernel", "cuFunc",           "cuGraph",  "cuPointer",
                                                "cuOccupancy", "cuArray",  "cuCtxSynchronize", NULL};
    calls = claim((size_t)n_calls * sizeof *calls);
    for (int i = 0; i < n_calls; i++)
        calls[i].traits = (starts_with_one_of(call_names[i], free_calls) ? FREE_CALL : 0) |
                          (starts_with_one_of(call_names[i], healthy_calls) ? NEEDS_HEALTH : 0);
    pthread_atfork(NULL, NULL, start_again_in_child);
}

static CUresult refusal(int index) {
    unsigned traits = calls[index].traits;
    if (forked)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (!(traits & FREE_CALL)) {
        if (!open)
            return CUDA_ERROR_NOT_INITIALIZED;
        if (thread_self()->in_host_function)
            return CUDA_ERROR_NOT_PERMITTED;
    }
    Context *context = context_top();
    if (traits & NEEDS_HEALTH && context && (context->broken || context->device->lost))
        return context_state(context);
    bool sticky = false;
    CUresult fault = fault_of_call(call_names[index], context ? context->device->ordinal : -1, &sticky);
    if (fault && sticky && context)
        context_break(context, fault, call_names[index]);
    return fault;
}

CUresult call_begin(int index, bool per_thread) {
    call.index = index;
    call.per_thread = per_thread;
    call.n_notes = 0;
    call.start = trace_is_on() ? now_ns() : 0;
    pthread_mutex_lock(&lock);
    calls[index].count++;
    return refusal(index);
}

CUresult call_end(CUresult result) {
    const Context *context = context_top();
    pthread_mutex_unlock(&lock);
    if (trace_is_on())
        trace_call(call_names[call.index], call.start, result, context ? context->device->ordinal : -1, call.notes,
                   call.n_notes);
    call.index = OUTSIDE;
    return result;
}

CUresult call_missing(void) {
    if (calls[call.index].count == 1)
        say("%s is not emulated", call_names[call.index]);
    return CUDA_ERROR_NOT_SUPPORTED;
}

bool call_is_per_thread(void) {
    return call.per_thread;
}

const char *call_name(void) {
    return call.index == OUTSIDE ? "the host" : call_names[call.index];
}

void call_note(const char *key, uint64_t value) {
    if (call.n_notes < MAX_NOTES)
        call.notes[call.n_notes++] = (Note){key, value};
}

uint64_t call_count(int index) {
    return calls[index].count;
}

CUresult emulated_cuInit(unsigned int flags) {
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (open)
        return CUDA_SUCCESS;
    if (!devices_open())
        return CUDA_ERROR_NO_DEVICE;
    if (!ranges_open())
        return CUDA_ERROR_OPERATING_SYSTEM;
    open = true;
    return CUDA_SUCCESS;
}

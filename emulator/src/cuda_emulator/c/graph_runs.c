/* Launches of graphs. The whole graph is one operation of the stream, and its steps run one after the other in the
 * stream's worker, in an order that the edges allow: with jitter, one that the seed draws anew for each launch, so that
 * a missing edge shows as wrong data. */
#include <stdlib.h>
#include <string.h>

#include "event.h"
#include "exec.h"
#include "faults.h"
#include "trace.h"

typedef struct RunStep {
    Content content;
    Record *record; /* of an event: what is to be completed, or waited for */
    CUresult fault;
} RunStep;

struct GraphRun {
    size_t n;
    RunStep *steps; /* in the order in which they run */
    uint64_t stream; /* id, for jitter and trace */
    uint64_t number;
};

/* An order of the steps that the edges allow. */
static size_t *order_of(const Steps *steps, const Stream *stream) {
    size_t n = steps->n, n_ready = 0, n_done = 0;
    size_t *order = claim(n * sizeof *order), *ready = claim(n * sizeof *ready), *missing = claim(n * sizeof *missing);
    for (size_t i = 0; i < n; i++)
        if (!(missing[i] = steps->items[i].n_after))
            ready[n_ready++] = i;
    while (n_ready) {
        size_t pick = settings.jitter_us ? seeded_number(stream->id << 32 | stream->submitted, n_done, n_ready) : 0;
        size_t step = ready[pick];
        memmove(ready + pick, ready + pick + 1, (--n_ready - pick) * sizeof *ready);
        order[n_done++] = step;
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < steps->items[i].n_after; j++)
                if (steps->items[i].after[j] == step && --missing[i] == 0)
                    ready[n_ready++] = i;
    }
    free(ready);
    free(missing);
    return order;
}

static CUresult prepare_event(RunStep *step) {
    Event *event = object_find(step->content.event, OBJECT_EVENT);
    if (!event)
        return CUDA_ERROR_INVALID_HANDLE;
    if (step->content.type == CU_GRAPH_NODE_TYPE_WAIT_EVENT) {
        step->record = record_keep(event->record);
        return CUDA_SUCCESS;
    }
    step->record = record_new();
    event_set(event, record_keep(step->record));
    return CUDA_SUCCESS;
}

static CUresult prepare(RunStep *step, const Exec *exec) {
    switch (step->content.type) {
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return prepare_event(step);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        return graph_memory_launch(step->content.address,
                                   exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        graph_memory_will_be_freed(step->content.address);
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    default:
        step->fault = fault_of_work(work_kind_name(&step->content.work), step->content.context->device->ordinal);
        return context_state(step->content.context);
    }
}

CUresult graph_run_new(const Exec *exec, const Stream *stream, GraphRun **launched) {
    const Steps *steps = &exec->steps;
    GraphRun *run = claim(sizeof *run);
    size_t *order = order_of(steps, stream);
    run->steps = claim(steps->n * sizeof *run->steps);
    run->stream = stream->id;
    run->number = stream->submitted;
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < steps->n && !result; i++) {
        const Step *step = &steps->items[order[i]];
        if (step->disabled || step->content.type == CU_GRAPH_NODE_TYPE_EMPTY)
            continue;
        RunStep *next = &run->steps[run->n++];
        next->content = content_copy(&step->content);
        result = prepare(next, exec);
    }
    free(order);
    if (result)
        graph_run_end(run);
    else
        *launched = run;
    return result;
}

static void run_event(const RunStep *step) {
    Record *record = step->record;
    if (!record)
        return;
    if (step->content.type == CU_GRAPH_NODE_TYPE_EVENT_RECORD)
        record_complete(record, step->content.context->device);
    else
        while (!record->done)
            pthread_cond_wait(&record->changed, &lock);
}

static CUresult run_work(const RunStep *step, const GraphRun *run, uint64_t number) {
    CUresult state = context_state(step->content.context);
    if (state || step->fault) {
        if (!state)
            work_blame(&step->content.work, step->content.context, step->fault);
        return state ? state : step->fault;
    }
    pthread_mutex_unlock(&lock);
    delay(run->stream, run->number << 20 | number);
    uint64_t start = now_ns();
    CUresult result = work_run(&step->content.work, step->content.context, CUDA_SUCCESS);
    if (trace_is_on())
        trace_operation(work_kind_name(&step->content.work), work_name(&step->content.work), run->stream,
                        step->content.context->device->ordinal, start, start, now_ns(), work_bytes(&step->content.work),
                        result);
    pthread_mutex_lock(&lock);
    if (result)
        work_blame(&step->content.work, step->content.context, result);
    return result;
}

CUresult graph_run(GraphRun *run) {
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < run->n && !result; i++) {
        const RunStep *step = &run->steps[i];
        switch (step->content.type) {
        case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
            run_event(step);
            break;
        case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
            result = graph_memory_wake(step->content.address);
            break;
        case CU_GRAPH_NODE_TYPE_MEM_FREE:
            result = graph_memory_sleep(step->content.address);
            break;
        default:
            result = run_work(step, run, i);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

void graph_run_end(GraphRun *run) {
    for (size_t i = 0; i < run->n; i++) {
        RunStep *step = &run->steps[i];
        if (step->record && !step->record->done && step->content.type == CU_GRAPH_NODE_TYPE_EVENT_RECORD)
            record_complete(step->record, step->content.context->device); /* not reached: who waits for it is told by the broken context */
        record_drop(step->record);
        content_release(&step->content);
    }
    free(run->steps);
    free(run);
}

/* What the emulated cuBLAS, cuDNN and cuRAND tell the driver: each call, which a fault may strike by its name as it may
 * one of the driver's, what they have made and not destroyed, the time that calls take, and hazards. */
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "context.h"
#include "control.h"
#include "faults.h"
#include "library_calls.h"
#include "report.h"
#include "stream.h"

/* Of the jitter in these calls; the lanes of streams are their numbers. */
#define LIBRARY_LANE UINT64_MAX

typedef struct Tally {
    char *name;
    uint64_t count;
} Tally;

typedef struct Tallies {
    Tally *items;
    size_t n;
} Tallies;

static Tallies calls, objects;
static Tallies times; /* nanoseconds that were declared */
static uint64_t n_calls_made;

static uint64_t *count_of(Tallies *tallies, const char *name) {
    for (size_t i = 0; i < tallies->n; i++)
        if (!strcmp(tallies->items[i].name, name))
            return &tallies->items[i].count;
    tallies->items = realloc(tallies->items, (tallies->n + 1) * sizeof *tallies->items);
    if (!tallies->items)
        abort();
    tallies->items[tallies->n] = (Tally){claim_copy(name, strlen(name) + 1), 0};
    return &tallies->items[tallies->n++].count;
}

static void visit_all(const Tallies *tallies, void (*visit)(const char *, uint64_t, void *), void *data) {
    for (size_t i = 0; i < tallies->n; i++)
        visit(tallies->items[i].name, tallies->items[i].count, data);
}

void library_calls_visit(void (*visit)(const char *name, uint64_t count, void *data), void *data) {
    visit_all(&calls, visit, data);
}

void library_objects_visit(void (*visit)(const char *name, uint64_t count, void *data), void *data) {
    visit_all(&objects, visit, data);
}

int emulator_library_call(const char *name) {
    bool sticky = false;
    pthread_mutex_lock(&lock);
    Context *context = context_top();
    CUresult fault = fault_of_call(name, context ? context->device->ordinal : -1, &sticky);
    if (fault && sticky && context)
        context_break(context, fault, name);
    ++*count_of(&calls, name);
    uint64_t number = ++n_calls_made;
    pthread_mutex_unlock(&lock);
    delay(LIBRARY_LANE, number);
    return (int)fault;
}

void emulator_declare_time(const char *name, uint64_t nanoseconds) {
    pthread_mutex_lock(&lock);
    *count_of(&times, name) = nanoseconds;
    pthread_mutex_unlock(&lock);
}

void emulator_library_takes(const char *name, const void *given) {
    pthread_mutex_lock(&lock);
    Work time = {.kind = WORK_TIME, .nanoseconds = *count_of(&times, name)};
    Stream *stream = object_find(given, OBJECT_STREAM);
    if (time.nanoseconds && stream && !stream->capture)
        stream_submit(stream, &time, NULL);
    pthread_mutex_unlock(&lock);
}

void emulator_library_object(const char *kind, int change) {
    pthread_mutex_lock(&lock);
    *count_of(&objects, kind) += (uint64_t)(int64_t)change;
    pthread_mutex_unlock(&lock);
}

void emulator_add_hazard(const char *text) {
    pthread_mutex_lock(&lock);
    hazard("library", "%s", text);
    pthread_mutex_unlock(&lock);
}

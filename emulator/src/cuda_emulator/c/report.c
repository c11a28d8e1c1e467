/* What the emulator knows, told beside the API: hazards, what is alive, and the exported functions that are not CUDA's.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "call.h"
#include "control.h"
#include "faults.h"
#include "library_calls.h"
#include "memory.h"
#include "pool.h"
#include "report.h"
#include "stream.h"

enum { MAX_HAZARDS = 200 };

static struct {
    const char *kind;
    char text[280];
} hazards[MAX_HAZARDS];
static size_t n_hazards; /* all that were met; the first ones are kept */

void hazard(const char *kind, const char *format, ...) {
    char text[sizeof hazards->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    say("%s: %s", kind, text);
    if (n_hazards < MAX_HAZARDS) {
        hazards[n_hazards].kind = kind;
        memcpy(hazards[n_hazards].text, text, sizeof text);
    }
    n_hazards++;
}

static void visit_streams(void (*visit)(const Stream *stream, void *data), void *data) {
    for (const Context *context = contexts_first(); context; context = context->next)
        for (const Stream *stream = context->streams; stream; stream = stream->next)
            visit(stream, data);
}

static void say_unfinished(const Stream *stream, void *data) {
    (void)data;
    const Operation *operation = stream->running ? stream->running : stream->first;
    if (operation)
        say("  unfinished: stream %llu of device %d: %s %s (%s)", (unsigned long long)stream->id,
            stream->context->device->ordinal, work_kind_name(&operation->work), work_name(&operation->work),
            stream->running ? "running" : "waiting");
}

void report_timeout(void) {
    say("%s waited for %llu s and gives up", call_name(), (unsigned long long)(settings.timeout_ns / 1000000000u));
    visit_streams(say_unfinished, NULL);
}

/* Text that may be longer than its room, as snprintf has it. */
typedef struct Text {
    char *start;
    size_t room, length;
    bool first; /* no comma before the next item */
} Text;

static void put(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(Text *text, const char *format, ...) {
    bool fits = text->length < text->room;
    va_list arguments;
    va_start(arguments, format);
    int n =
        vsnprintf(fits ? text->start + text->length : NULL, fits ? text->room - text->length : 0, format, arguments);
    va_end(arguments);
    text->length += n > 0 ? (size_t)n : 0;
}

static void next_item(Text *text) {
    if (!text->first)
        put(text, ",");
    text->first = false;
}

static void open_list(Text *text, const char *name) {
    put(text, "\"%s\":[", name);
    text->first = true;
}

static void put_allocation(Allocation *allocation, void *data) {
    static const char *const places[] = {"device", "pinned", "managed", "registered", "mapped", "global"};
    next_item(data);
    put(data, "{\"address\":%zu,\"bytes\":%zu,\"place\":\"%s\",\"device\":%d,\"pool\":%s,\"leaving\":%s}",
        (size_t)allocation->address, allocation->size, places[allocation->place],
        allocation->device ? allocation->device->ordinal : -1, allocation->pool ? "true" : "false",
        allocation->leaving ? "true" : "false");
}

static void put_stream(const Stream *stream, void *data) {
    size_t queued = 0;
    for (const Operation *operation = stream->first; operation; operation = operation->next)
        queued++;
    next_item(data);
    put(data, "{\"stream\":%llu,\"device\":%d,\"queued\":%zu,\"submitted\":%llu,\"running\":\"%s\"}",
        (unsigned long long)stream->id, stream->context->device->ordinal, queued, (unsigned long long)stream->submitted,
        stream->running ? work_kind_name(&stream->running->work) : "");
}

static bool is_clients(const Object *object) {
    if (object->kind == OBJECT_CONTEXT)
        return false;
    if (object->kind == OBJECT_STREAM)
        return !((const Stream *)object)->owner && ((const Stream *)object)->context->legacy != (const Stream *)object;
    return object->kind != OBJECT_POOL || !((const Pool *)object)->is_default;
}

static void count_object(Object *object, void *data) {
    size_t *counts = data;
    counts[object->kind] += is_clients(object);
}

static void put_objects(Text *text) {
    size_t counts[N_KINDS] = {0};
    objects_visit(count_object, counts);
    put(text, "\"objects\":{");
    text->first = true;
    for (int kind = OBJECT_STREAM; kind < N_KINDS; kind++) {
        next_item(text);
        put(text, "\"%s\":%zu", kind_name(kind), counts[kind]);
    }
    put(text, "}");
}

static void put_calls(Text *text) {
    put(text, "\"calls\":{");
    text->first = true;
    for (int i = 0; i < n_calls; i++)
        if (call_count(i)) {
            next_item(text);
            put(text, "\"%s\":%llu", call_names[i], (unsigned long long)call_count(i));
        }
    put(text, "}");
}

static void put_count(const char *name, uint64_t count, void *data) {
    next_item(data);
    put(data, "\"%s\":%llu", name, (unsigned long long)count);
}

static void put_hazards(Text *text) {
    open_list(text, "hazards");
    for (size_t i = 0; i < n_hazards && i < MAX_HAZARDS; i++) {
        next_item(text);
        put(text, "{\"kind\":\"%s\",\"text\":\"%s\"}", hazards[i].kind, hazards[i].text);
    }
    put(text, "],\"n_hazards\":%zu", n_hazards);
}

static void put_devices(Text *text) {
    open_list(text, "devices");
    for (int i = 0; i < settings.devices; i++) {
        const Device *device = &devices[i];
        next_item(text);
        put(text, "{\"device\":%d,\"total\":%zu,\"used\":%zu,\"lost\":%s,\"broken\":%d}", i, device->total,
            device->used, device->lost ? "true" : "false", device->primary ? (int)device->primary->broken : 0);
    }
    put(text, "]");
}

size_t emulator_report(char *room, size_t size) {
    Text text = {.start = room, .room = size};
    pthread_mutex_lock(&lock);
    put(&text, "{");
    put_devices(&text);
    put(&text, ",");
    open_list(&text, "allocations");
    allocations_visit(put_allocation, &text);
    put(&text, "],");
    open_list(&text, "streams");
    visit_streams(put_stream, &text);
    put(&text, "],");
    put_objects(&text);
    put(&text, ",");
    put_calls(&text);
    put(&text, ",\"libraries\":{\"calls\":{");
    text.first = true;
    library_calls_visit(put_count, &text);
    put(&text, "},\"objects\":{");
    text.first = true;
    library_objects_visit(put_count, &text);
    put(&text, "}},");
    put_hazards(&text);
    put(&text, "}");
    pthread_mutex_unlock(&lock);
    return text.length;
}

typedef struct Sum {
    int device;
    size_t bytes;
} Sum;

static void add_bytes(Allocation *allocation, void *data) {
    Sum *sum = data;
    bool ours = allocation->place != PLACE_REGISTERED && allocation->place != PLACE_GLOBAL;
    if (ours && (sum->device < 0 || (allocation->device && allocation->device->ordinal == sum->device)))
        sum->bytes += allocation->size;
}

size_t emulator_live_bytes(int device) {
    Sum sum = {.device = device};
    pthread_mutex_lock(&lock);
    allocations_visit(add_bytes, &sum);
    pthread_mutex_unlock(&lock);
    return sum.bytes;
}

size_t emulator_live_objects(void) {
    size_t counts[N_KINDS] = {0}, all = 0;
    pthread_mutex_lock(&lock);
    objects_visit(count_object, counts);
    pthread_mutex_unlock(&lock);
    for (int kind = 0; kind < N_KINDS; kind++)
        all += counts[kind];
    return all;
}

size_t emulator_hazards(void) {
    pthread_mutex_lock(&lock);
    size_t n = n_hazards;
    pthread_mutex_unlock(&lock);
    return n;
}

int emulator_wait_idle(void) {
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    for (Context *context = contexts_first(); context && !result; context = context->next)
        result = context_wait(context);
    pthread_mutex_unlock(&lock);
    return result ? -1 : 0;
}

int emulator_set_faults(const char *text) {
    pthread_mutex_lock(&lock);
    size_t bad = faults_set(text ? text : "");
    pthread_mutex_unlock(&lock);
    return (int)bad;
}

int emulator_restore_device(int ordinal) {
    pthread_mutex_lock(&lock);
    Device *device = device_at(ordinal);
    if (device)
        device_restore(device);
    pthread_mutex_unlock(&lock);
    return device ? 0 : -1;
}

int emulator_lose_device(int ordinal) {
    pthread_mutex_lock(&lock);
    Device *device = device_at(ordinal);
    if (device)
        device_lose(device);
    pthread_mutex_unlock(&lock);
    return device ? 0 : -1;
}

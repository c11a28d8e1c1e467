/* Running work. Addresses are resolved when the work's turn comes: what was freed before it in the order of its stream
 * is gone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "beacon.h"
#include "exec.h"
#include "guard.h"
#include "kernel.h"
#include "memory.h"
#include "report.h"
#include "work.h"

static const char *const kind_names[N_WORK_KINDS] = {
    [WORK_MARK] = "mark",     [WORK_COPY] = "copy",   [WORK_FILL] = "fill", [WORK_KERNEL] = "kernel",
    [WORK_HOST] = "host",     [WORK_ALLOC] = "alloc", [WORK_FREE] = "free", [WORK_GRAPH] = "graph",
    [WORK_SIGNAL] = "signal", [WORK_AWAIT] = "await", [WORK_TIME] = "time"};

const char *work_kind_name(const Work *work) {
    return kind_names[work->kind];
}

const char *work_name(const Work *work) {
    return work->kind == WORK_KERNEL ? work->launch.kernel->name : "";
}

static size_t extent(size_t width, size_t height, size_t depth, size_t pitch, size_t slice) {
    return width && height && depth ? (depth - 1) * slice + (height - 1) * pitch + width : 0;
}

size_t copy_target_extent(const Copy *copy) {
    return extent(copy->width, copy->height, copy->depth, copy->target_pitch, copy->target_slice);
}

size_t copy_source_extent(const Copy *copy) {
    return extent(copy->width, copy->height, copy->depth, copy->source_pitch, copy->source_slice);
}

size_t fill_extent(const Fill *fill) {
    return extent(fill->width * fill->element, fill->height, 1, fill->pitch, 0);
}

uint64_t work_bytes(const Work *work) {
    switch (work->kind) {
    case WORK_COPY:
        return work->copy.width * work->copy.height * work->copy.depth;
    case WORK_FILL:
        return work->fill.width * work->fill.element * work->fill.height;
    default:
        return 0;
    }
}

/* The address that the CPU uses for `size` bytes; NULL, and a hazard said, if the memory is not there at this point of
 * the stream. */
static void *resolve(const char *what, uintptr_t address, size_t size) {
    const Allocation *allocation = allocation_at(address);
    if (!allocation && !is_device_address(address))
        return (void *)address;
    if (!allocation || size > room_at(address)) {
        hazard("use after free", "a %s of %zu bytes at 0x%zx met memory that was freed before it", what, size,
               (size_t)address);
        return NULL;
    }
    if (!is_usable(allocation)) {
        hazard("use before allocation", "a %s at 0x%zx met memory that is not allocated at this point of the order",
               what, (size_t)address);
        return NULL;
    }
    return (void *)(allocation->bytes + (address - allocation->address));
}

static void move_box(const void *data) {
    const Copy *copy = data;
    for (size_t z = 0; z < copy->depth; z++)
        for (size_t y = 0; y < copy->height; y++)
            memmove((char *)copy->target + z * copy->target_slice + y * copy->target_pitch,
                    (const char *)copy->source + z * copy->source_slice + y * copy->source_pitch, copy->width);
}

static void fill_box(const void *data) {
    const Fill *fill = data;
    for (size_t y = 0; y < fill->height; y++) {
        char *row = (char *)fill->target + y * fill->pitch;
        if (fill->element == 1)
            memset(row, (int)fill->value, fill->width);
        else
            for (size_t x = 0; x < fill->width; x++)
                memcpy(row + x * fill->element, &fill->value, fill->element); /* little end first, as on the devices */
    }
}

static CUresult run_guarded(void (*run)(const void *data), const void *data, const char *what) {
    uintptr_t address;
    if (guarded(run, data, &address))
        return CUDA_SUCCESS;
    hazard("invalid address", "a %s touched 0x%zx, where there is no memory", what, (size_t)address);
    return CUDA_ERROR_ILLEGAL_ADDRESS;
}

static CUresult run_copy(Copy copy) {
    pthread_mutex_lock(&lock);
    guard_install();
    void *target = resolve("copy", copy.target, copy_target_extent(&copy));
    void *source = copy.staged ? copy.staged : resolve("copy", copy.source, copy_source_extent(&copy));
    pthread_mutex_unlock(&lock);
    if (!target || !source)
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    copy.target = (uintptr_t)target;
    copy.source = (uintptr_t)source;
    return run_guarded(move_box, &copy, "copy");
}

static CUresult run_fill(Fill fill) {
    pthread_mutex_lock(&lock);
    guard_install();
    void *target = resolve("fill", fill.target, fill_extent(&fill));
    pthread_mutex_unlock(&lock);
    if (!target)
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    fill.target = (uintptr_t)target;
    return run_guarded(fill_box, &fill, "fill");
}

static CUresult run_host(const HostCall *call, CUresult state) {
    if (call->callback)
        call->callback(call->stream, state, call->data);
    else
        call->function(call->data);
    return CUDA_SUCCESS;
}

static CUresult run_time(Device *device, uint64_t nanoseconds) {
    pthread_mutex_lock(&lock);
    device->ahead_ns += nanoseconds;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

static CUresult run_free(Allocation *allocation) {
    pthread_mutex_lock(&lock);
    allocation_release(allocation);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

CUresult work_run(const Work *work, Context *context, CUresult state) {
    switch (work->kind) {
    case WORK_COPY:
        return run_copy(work->copy);
    case WORK_FILL:
        return run_fill(work->fill);
    case WORK_KERNEL:
        return launch_run(&work->launch, context);
    case WORK_HOST:
        return run_host(&work->host, state);
    case WORK_FREE:
        return run_free(work->allocation);
    case WORK_SIGNAL:
        beacon_reach(work->signal.beacon, work->signal.number);
        return CUDA_SUCCESS;
    case WORK_AWAIT:
        return beacon_wait(work->signal.beacon, work->signal.number) ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_TIMEOUT;
    case WORK_GRAPH:
        return graph_run(work->graph);
    case WORK_TIME:
        return run_time(context->device, work->nanoseconds);
    default:
        return CUDA_SUCCESS;
    }
}

bool work_survives(const Work *work) {
    return work->kind == WORK_HOST && work->host.callback;
}

void work_blame(const Work *work, Context *context, CUresult error) {
    char what[300];
    snprintf(what, sizeof what, "%s%s%s", work_kind_name(work), *work_name(work) ? " " : "", work_name(work));
    context_break(context, error, what);
}

Work work_copy(const Work *work) {
    if (work->kind == WORK_KERNEL)
        launch_keep(&work->launch);
    return *work;
}

void work_release(Work *work) {
    if (work->kind == WORK_COPY)
        free(work->copy.staged);
    if (work->kind == WORK_KERNEL)
        launch_drop(&work->launch);
    if (work->kind == WORK_GRAPH)
        graph_run_end(work->graph);
    if (work->kind == WORK_SIGNAL || work->kind == WORK_AWAIT)
        beacon_drop(work->signal.beacon);
}

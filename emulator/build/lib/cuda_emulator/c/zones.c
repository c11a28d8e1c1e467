/* Red zones: bytes of a known value before and after an allocation. Copies and fills are checked exactly when they are
 * called, so only kernels and, for pinned and managed memory, the host can damage them; they are checked when memory is
 * freed and when the host waits for a stream after a kernel ran. */
#include <string.h>

#include "memory.h"
#include "report.h"

enum { PAINT = 0xA5 };

typedef struct Zone {
    unsigned char *start;
    size_t size;
} Zone;

static Zone before(const Allocation *allocation) {
    size_t size = allocation->address - allocation->block;
    return (Zone){(unsigned char *)allocation->bytes - size, size};
}

static Zone after(const Allocation *allocation) {
    size_t rest = allocation->block + allocation->block_size - allocation->address - allocation->size;
    return (Zone){(unsigned char *)allocation->bytes + allocation->size, rest};
}

static bool has_zones(const Allocation *allocation) {
    bool ours =
        allocation->place == PLACE_DEVICE || allocation->place == PLACE_PINNED || allocation->place == PLACE_MANAGED;
    return ours && settings.red_zone && !allocation->shared;
}

void zones_paint(const Allocation *allocation) {
    if (!has_zones(allocation))
        return;
    Zone zones[] = {before(allocation), after(allocation)};
    for (int i = 0; i < 2; i++)
        memset(zones[i].start, PAINT, zones[i].size);
}

static bool damaged(Zone zone) {
    for (size_t i = 0; i < zone.size; i++)
        if (zone.start[i] != PAINT)
            return true;
    return false;
}

bool zones_broken(const Allocation *allocation) {
    if (!has_zones(allocation))
        return false;
    bool front = damaged(before(allocation)), back = damaged(after(allocation));
    if (front || back) {
        hazard("out of bounds", "a write just %s an allocation of %zu bytes at 0x%zx", front ? "before" : "behind",
               allocation->size, (size_t)allocation->address);
        zones_paint(allocation);
    }
    return front || back;
}

typedef struct Check {
    const Context *context;
    bool broken;
} Check;

static void check(Allocation *allocation, void *data) {
    Check *state = data;
    if (may_access(state->context, allocation) && zones_broken(allocation))
        state->broken = true;
}

CUresult context_check_zones(Context *context) {
    CUresult state = context_state(context);
    if (state || !context->kernels_ran || !settings.red_zone)
        return state;
    context->kernels_ran = false;
    Check result = {.context = context};
    allocations_visit(check, &result);
    if (result.broken)
        context_break(context, CUDA_ERROR_ILLEGAL_ADDRESS, "a kernel wrote outside of an allocation");
    return context_state(context);
}

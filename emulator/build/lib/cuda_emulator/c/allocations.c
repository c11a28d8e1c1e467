/* The allocations, in a tree ordered by address.
 *
 *     block                address                    address + size            block + block_size
 *     | red zone, 512 bytes | the client's bytes ...   | red zone to the page's end | nothing, 64 KiB
 *
 * An allocation's record lives as long as it stands in the tree: operations name memory by address and look it up when
 * their turn comes, so that one which comes too late finds nothing there. */
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "call.h"
#include "memory.h"
#include "pool.h"
#include "report.h"

static void *tree;
static uint64_t last_id;

/* Ranges that have a byte in common are equal: so a search finds what overlaps. The tree holds only disjoint ones. */
static int compare(const void *left, const void *right) {
    const Allocation *a = left, *b = right;
    if (a->block + a->block_size <= b->block)
        return -1;
    return a->block >= b->block + b->block_size;
}

Allocation *allocation_across(uintptr_t address, size_t size) {
    const Allocation key = {.block = address, .block_size = size};
    void *node = tfind(&key, &tree, compare);
    return node ? *(Allocation **)node : NULL;
}

Allocation *allocation_at(uintptr_t address) {
    Allocation *found = allocation_across(address, 1);
    bool inside = found && address >= found->address && address - found->address < found->size;
    return inside ? found : NULL;
}

void allocation_add(Allocation *allocation) {
    allocation->id = ++last_id;
    if (!tsearch(allocation, &tree, compare))
        abort();
}

const Backing fresh_pages = {.file = -1};

static bool lay_out_device(Allocation *allocation, size_t front, Backing backing) {
    allocation->block = range_take(allocation->device->ordinal, allocation->block_size, PAGE);
    if (!allocation->block)
        return false;
    allocation->address = allocation->block + front;
    allocation->bytes = range_bytes(allocation->address);
    return range_fill(allocation->block, allocation->block_size, backing.file, backing.offset);
}

static bool lay_out_host(Allocation *allocation, Backing backing) {
    int flags = MAP_FIXED | (backing.file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
    size_t size = allocation->block_size;
    char *pages = mmap(NULL, size + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return false;
    allocation->block = allocation->address = allocation->bytes = (uintptr_t)pages;
    return mmap(pages, size, PROT_READ | PROT_WRITE, flags, backing.file, (off_t)backing.offset) == pages;
}

Allocation *allocation_new(Place place, Device *device, size_t size, Backing backing) {
    Allocation *allocation = claim(sizeof *allocation);
    /* Host memory starts at a page, as the driver's does; a file holds nothing but the client's bytes. */
    bool shared = backing.file >= 0;
    size_t front = place == PLACE_DEVICE && !shared && settings.red_zone ? round_up(settings.red_zone, 512) : 0;
    allocation->place = place;
    allocation->device = device;
    allocation->size = size;
    allocation->block_size = round_up(front + size + (shared ? 0 : settings.red_zone), PAGE);
    allocation->shared = shared;
    allocation->offset = backing.offset;
    if (!(place == PLACE_DEVICE ? lay_out_device(allocation, front, backing) : lay_out_host(allocation, backing))) {
        free(allocation);
        return NULL;
    }
    allocation_add(allocation);
    return allocation;
}

void allocation_paint(const Allocation *allocation) {
    if (settings.poison >= 0)
        memset((void *)allocation->bytes, settings.poison, allocation->size);
    zones_paint(allocation);
}

static void give_back_pages(const Allocation *allocation) {
    if (allocation->place == PLACE_DEVICE || allocation->place == PLACE_MAPPED)
        range_clear(allocation->block, allocation->block_size);
    else if (allocation->place == PLACE_PINNED || allocation->place == PLACE_MANAGED)
        munmap((void *)allocation->block, allocation->block_size + PAGE);
}

void allocation_end(Allocation *allocation) {
    if (zones_broken(allocation) && allocation->context)
        context_break(allocation->context, CUDA_ERROR_ILLEGAL_ADDRESS, "a write outside of an allocation");
    tdelete(allocation, &tree, compare);
    give_back_pages(allocation);
    if (allocation->charged)
        device_refund(allocation->device, allocation->charged);
    if (allocation->pool)
        pool_take_back(allocation);
    if (allocation->mapped)
        block_unmapped(allocation->mapped);
    record_drop(allocation->available);
    record_drop(allocation->freed);
    free(allocation);
}

void allocation_release(Allocation *allocation) {
    if (!allocation->owners) {
        allocation_end(allocation);
        return;
    }
    allocation->asleep = true;
    allocation->leaving = false;
    record_drop(allocation->freed);
    allocation->freed = NULL;
}

bool is_usable(const Allocation *allocation) {
    return !allocation->asleep && (!allocation->available || allocation->available->done);
}

typedef struct Visit {
    void (*visit)(Allocation *allocation, void *data);
    void *data;
} Visit;

static void visit_node(const void *node, VISIT which, void *data) {
    const Visit *visit = data;
    if (which == postorder || which == leaf)
        visit->visit(*(Allocation *const *)node, visit->data);
}

void allocations_visit(void (*visit)(Allocation *allocation, void *data), void *data) {
    Visit both = {visit, data};
    twalk_r(tree, visit_node, &both);
}

typedef struct Found {
    const Context *context;
    Allocation **list; /* NULL: only counted */
    size_t n;
} Found;

static void match(Allocation *allocation, void *data) {
    Found *found = data;
    if (allocation->context != found->context)
        return;
    if (found->list)
        found->list[found->n] = allocation;
    found->n++;
}

void allocations_end_of(const Context *context) {
    Found found = {.context = context};
    allocations_visit(match, &found);
    found.list = claim(found.n * sizeof *found.list);
    found.n = 0;
    allocations_visit(match, &found);
    for (size_t i = 0; i < found.n; i++)
        allocation_end(found.list[i]);
    free(found.list);
}

size_t room_at(uintptr_t address) {
    const Allocation *allocation = allocation_at(address);
    size_t room = 0;
    for (; allocation; allocation = allocation->mapped ? allocation_at(address + room) : NULL)
        if (!room || (allocation->mapped && allocation->access))
            room = allocation->address + allocation->size - address;
        else
            break;
    return room;
}

CUresult range_check(uintptr_t address, size_t size) {
    const Allocation *allocation = allocation_at(address);
    if (!allocation && !is_device_address(address))
        return size && !address ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    if (!allocation || allocation->leaving) {
        const char *why =
            allocation ? "whose free is already submitted" : "where nothing is allocated, or not any more";
        hazard("use after free", "%s names memory at 0x%zx %s", call_name(), (size_t)address, why);
        return CUDA_ERROR_INVALID_VALUE;
    }
    bool reachable = !allocation->mapped || allocation->access; /* mapped, and no device has been given access */
    return reachable && size <= room_at(address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

bool is_pageable(uintptr_t address) {
    return !is_device_address(address) && !allocation_at(address);
}

bool may_access(const Context *context, const Allocation *allocation) {
    if (allocation->place == PLACE_MAPPED)
        return allocation->access >> context->device->ordinal & 1;
    if (allocation->place != PLACE_DEVICE || allocation->device == context->device)
        return true;
    if (allocation->of_graph)
        return allocation->access >> context->device->ordinal & 1;
    return allocation->pool ? pool_may_access(allocation->pool, context->device)
                            : context_may_access(context, allocation->device);
}

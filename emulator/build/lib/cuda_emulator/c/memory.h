/* Memory: ranges of addresses, and the allocations in them. */
#ifndef EMULATOR_MEMORY_H
#define EMULATOR_MEMORY_H

#include "context.h"
#include "stream.h"

typedef enum Place {
    PLACE_DEVICE,
    PLACE_PINNED,
    PLACE_MANAGED,
    PLACE_REGISTERED, /* the client's own pages, of cuMemHostRegister */
    PLACE_MAPPED, /* physical memory mapped into a reserved range */
    PLACE_GLOBAL, /* a variable of a kernel image */
} Place;

struct Allocation {
    uintptr_t address; /* as the client has it */
    size_t size; /* bytes */
    uintptr_t bytes; /* where this process reads and writes them */
    uintptr_t block; /* the pages, red zones included; an address in the client's terms */
    size_t block_size;
    Place place;
    Device *device; /* NULL: the host's */
    Context *context; /* NULL: of no context, as what comes from a pool */
    Pool *pool; /* NULL: of no pool */
    unsigned flags; /* of cuMemHostAlloc, cuMemHostRegister, cuMemAllocManaged */
    uint64_t id;
    size_t charged; /* bytes counted on the device itself, so not those of a pool */
    uint32_t access; /* mapped, or of a graph: bit j: device j may access it */
    Record *available; /* its allocation in stream order; NULL: at once */
    bool leaving; /* its free is submitted, in the order of a stream */
    bool handed_over; /* its bytes are counted for another allocation already */
    Record *freed; /* of the submitted free */
    uint64_t freed_on; /* id of the stream */
    Allocation *next_leaving; /* of the pool */
    bool of_graph; /* see graph_memory.c for these */
    bool asleep, taken;
    unsigned owners;
    CUmemLocation preferred, prefetched; /* of managed memory */
    struct Block *mapped; /* PLACE_MAPPED: what of */
    bool read_mostly;
    uint32_t accessed_by;
    size_t offset; /* in the pool's file, if it has one */
    bool shared; /* its pages are a file's, which other processes may have mapped */
};

/* ranges.c: where allocations lie. Region 0 to 15 are the devices'; the last one is for addresses of no device. */

enum { NO_DEVICE = MAX_DEVICES, PAGE = 4096 };

bool ranges_open(void);
uintptr_t region_start(int region);
size_t region_size(void);
bool is_device_address(uintptr_t address);

/* Addresses that nobody uses, some that nobody gets after them; 0: none left. */
uintptr_t range_take(int region, size_t size, size_t alignment);

/* Where this process reaches the bytes of an address in a region. */
uintptr_t range_bytes(uintptr_t address);

/* The inverse, for an address of bytes in a region. */
uintptr_t address_of_bytes(uintptr_t bytes);

/* The addresses of a range become accessible to the emulator: fresh pages, or those of a file. */
bool range_fill(uintptr_t address, size_t size, int file, size_t offset);
void range_clear(uintptr_t address, size_t size);

/* allocations.c */

/* The allocation that contains the address. */
Allocation *allocation_at(uintptr_t address);

/* One that has any byte in common with the range. */
Allocation *allocation_across(uintptr_t address, size_t size);

/* The pages of an allocation: fresh ones, or a part of a file. */
typedef struct Backing {
    int file; /* -1: fresh pages */
    size_t offset;
} Backing;

extern const Backing fresh_pages;

/* The caller has counted the memory. NULL: the machine has no room for it. */
Allocation *allocation_new(Place place, Device *device, size_t size, Backing backing);

/* New memory gets the poison, and its red zones theirs. */
void allocation_paint(const Allocation *allocation);

/* Records what is already there: registered pages, mapped ranges, another process's memory. */
void allocation_add(Allocation *allocation);

/* Frees it at once, whatever still uses it. */
void allocation_end(Allocation *allocation);

/* The client frees it: its end, but for memory that a graph owns, which is there again with the next launch. */
void allocation_release(Allocation *allocation);

/* Whether it is there at this point of time. */
bool is_usable(const Allocation *allocation);
void allocations_end_of(const Context *context);
void allocations_visit(void (*visit)(Allocation *allocation, void *data), void *data);

/* What is wrong with a range that a call names: nothing if it lies in one allocation, or is of the host's pageable
 * memory. */
CUresult range_check(uintptr_t address, size_t size);
bool is_pageable(uintptr_t address);

bool may_access(const Context *context, const Allocation *allocation);

/* How many bytes from the address on may be used as one: to the end of the allocation, or of mappings side by side. */
size_t room_at(uintptr_t address);

/* virtual.c */

typedef struct Block Block;

/* A mapping of the block has ended. */
void block_unmapped(Block *block);

/* zones.c */

void zones_paint(const Allocation *allocation);

/* Whether somebody wrote outside of it; says so, once. */
bool zones_broken(const Allocation *allocation);

#endif

/* Addresses. Each device has a region of a tebibyte in which its memory gets addresses; the pages there can never be
 * touched, so a host that follows a device pointer faults. The bytes lie in a second place, at a constant distance (the
 * shadow), of which only the pages of live allocations are accessible: an operation that goes beyond an allocation's
 * pages or to freed memory faults too. Addresses are given out one behind the other and not again before the region has
 * been passed once, so a stale pointer stays stale. */
#include <sys/mman.h>

#include "memory.h"

#if defined(__SANITIZE_THREAD__) /* which leaves little of the address space to the program */
enum { REGION_SHIFT = 33 };
#define BASE 0x1000000000u
#define SHADOW 0x2400000000u
#else
enum { REGION_SHIFT = 40 };
#define BASE 0x200000000000u
#define SHADOW 0x200000000000u
#endif

/* Bytes behind each allocation that nobody gets. */
enum { N_REGIONS = MAX_DEVICES + 1, GUARD = 64 << 10 };

static size_t cursors[N_REGIONS];

size_t region_size(void) {
    return (size_t)1 << REGION_SHIFT;
}

uintptr_t region_start(int region) {
    return BASE + ((uintptr_t)region << REGION_SHIFT);
}

static bool reserve(uintptr_t address) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    return mmap((void *)address, region_size(), PROT_NONE, flags, -1, 0) == (void *)address;
}

bool ranges_open(void) {
    for (int region = 0; region < N_REGIONS; region++) {
        if (region >= settings.devices && region != NO_DEVICE)
            continue;
        if (!reserve(region_start(region)) || !reserve(region_start(region) + SHADOW)) {
            say("cannot reserve the addresses of region %d (a limit on address space, or somebody is there already)",
                region);
            return false;
        }
    }
    return true;
}

bool is_device_address(uintptr_t address) {
    return address >= BASE && address - BASE < N_REGIONS * region_size();
}

uintptr_t range_bytes(uintptr_t address) {
    return address + SHADOW;
}

uintptr_t address_of_bytes(uintptr_t bytes) {
    return bytes - SHADOW;
}

uintptr_t range_take(int region, size_t size, size_t alignment) {
    size_t need = round_up(size, PAGE) + GUARD;
    for (int rounds = 0; rounds < 2;) {
        size_t start = round_up(cursors[region], alignment);
        if (start + need > region_size() || start + need < start) {
            cursors[region] = 0;
            rounds++;
            continue;
        }
        uintptr_t address = region_start(region) + start;
        const Allocation *obstacle = allocation_across(address, need);
        if (!obstacle) {
            cursors[region] = start + need;
            return address;
        }
        cursors[region] = round_up(obstacle->block + obstacle->block_size + GUARD - region_start(region), PAGE);
    }
    return 0;
}

bool range_fill(uintptr_t address, size_t size, int file, size_t offset) {
    void *bytes = (void *)range_bytes(address);
    if (file < 0)
        return mprotect(bytes, size, PROT_READ | PROT_WRITE) == 0;
    return mmap(bytes, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, (off_t)offset) == bytes;
}

/* A fresh mapping, and not only PROT_NONE: what lay there is gone, also if it was a file's. */
void range_clear(uintptr_t address, size_t size) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap((void *)range_bytes(address), size, PROT_NONE, flags, -1, 0) == MAP_FAILED)
        say("cannot give back %zu bytes", size);
}

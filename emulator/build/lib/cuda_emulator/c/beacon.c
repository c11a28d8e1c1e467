/* The page of an interprocess event. Its file has no name: another process opens it through /proc as a descriptor of
 * the one that made it, so nothing is left behind however they end, and the maker must be alive when it is opened, as
 * the driver demands too. */
#include "beacon.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct Page {
    char magic[16];
    _Atomic uint32_t announced;
    _Atomic uint32_t reached;
} Page;

struct Beacon {
    int references;
    int file;
    Page *page;
};

typedef struct Handle {
    char magic[16];
    int process, file;
} Handle;

static const char magic[16] = "emulated event1";
enum { SIZE = 4096 };

static Beacon *map(int file) {
    void *page = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) {
        close(file);
        return NULL;
    }
    Beacon *beacon = claim(sizeof *beacon);
    *beacon = (Beacon){.references = 1, .file = file, .page = page};
    return beacon;
}

Beacon *beacon_new(void) {
    int file = memfd_create("cuda event", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, SIZE))
        return NULL;
    Beacon *beacon = map(file);
    if (beacon)
        memcpy(beacon->page->magic, magic, sizeof magic);
    return beacon;
}

Beacon *beacon_keep(Beacon *beacon) {
    beacon->references++;
    return beacon;
}

void beacon_drop(Beacon *beacon) {
    if (!beacon || --beacon->references)
        return;
    munmap(beacon->page, SIZE);
    close(beacon->file);
    free(beacon);
}

void beacon_describe(const Beacon *beacon, CUipcEventHandle *handle) {
    Handle told = {.process = (int)getpid(), .file = beacon->file};
    _Static_assert(sizeof told <= sizeof *handle, "it fits");
    memcpy(told.magic, magic, sizeof magic);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &told, sizeof told);
}

Beacon *beacon_open(const CUipcEventHandle *handle) {
    Handle told;
    char path[64];
    memcpy(&told, handle, sizeof told);
    if (memcmp(told.magic, magic, sizeof magic))
        return NULL;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", told.process, told.file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0 || lseek(file, 0, SEEK_END) != SIZE) {
        if (file >= 0)
            close(file);
        return NULL;
    }
    Beacon *beacon = map(file);
    if (beacon && memcmp(beacon->page->magic, magic, sizeof magic)) {
        beacon_drop(beacon);
        return NULL;
    }
    return beacon;
}

uint32_t beacon_announce(Beacon *beacon) {
    return atomic_fetch_add(&beacon->page->announced, 1) + 1;
}

void beacon_reach(Beacon *beacon, uint32_t number) {
    uint32_t reached = atomic_load(&beacon->page->reached);
    while ((int32_t)(number - reached) > 0 && !atomic_compare_exchange_weak(&beacon->page->reached, &reached, number))
        ;
    syscall(SYS_futex, &beacon->page->reached, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

uint32_t beacon_latest(const Beacon *beacon) {
    return atomic_load(&beacon->page->announced);
}

bool beacon_has_reached(const Beacon *beacon, uint32_t number) {
    return (int32_t)(atomic_load(&beacon->page->reached) - number) >= 0;
}

bool beacon_wait(const Beacon *beacon, uint32_t number) {
    uint64_t deadline = now_ns() + settings.timeout_ns;
    for (;;) {
        uint32_t reached = atomic_load(&beacon->page->reached);
        uint64_t now = now_ns();
        if ((int32_t)(reached - number) >= 0)
            return true;
        if (now >= deadline)
            return false;
        struct timespec left = timespec_of(deadline - now);
        syscall(SYS_futex, &beacon->page->reached, FUTEX_WAIT, reached, &left, NULL, 0);
    }
}

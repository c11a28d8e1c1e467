/* Virtual memory management: reserved ranges of addresses, physical memory (a Block, a file without a name), and the
 * one mapped into the other. A mapping is an allocation like others, except that mappings side by side may be used as
 * one. A block lives while a client has its handle or a mapping of it is there. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "call.h"
#include "memory.h"

enum { GRANULARITY = 2 << 20 };

typedef struct Range {
    uintptr_t address;
    size_t size;
    struct Range *next;
} Range;

struct Block {
    Object object;
    CUmemAllocationProp properties;
    Device *device;
    size_t size;
    unsigned references; /* of the client */
    unsigned mappings;
    int file;
    bool imported; /* counted where it was created */
};

/* Stands behind the last byte of a block's file, for who imports it. */
typedef struct Tail {
    char magic[16];
    CUmemAllocationProp properties;
} Tail;

static const char magic[16] = "emulated block1";
static Range *ranges;
static uintptr_t cursor;

static Range *range_across(uintptr_t address, size_t size) {
    for (Range *range = ranges; range; range = range->next)
        if (address < range->address + range->size && range->address < address + size)
            return range;
    return NULL;
}

static bool is_free(uintptr_t address, size_t size) {
    uintptr_t start = region_start(NO_DEVICE);
    bool inside = address >= start && address + size <= start + region_size() && address + size > address;
    return inside && !range_across(address, size);
}

/* A gap is left behind each range, so that it can grow a little in place. */
static uintptr_t find_free(size_t size, size_t alignment) {
    uintptr_t start = region_start(NO_DEVICE);
    for (int rounds = 0; rounds < 2; rounds++) {
        uintptr_t address = round_up(cursor ? cursor : start, alignment);
        for (const Range *obstacle; (obstacle = range_across(address, size));)
            address = round_up(obstacle->address + obstacle->size, alignment);
        if (is_free(address, size)) {
            cursor = address + size + GRANULARITY;
            return address;
        }
        cursor = start;
    }
    return 0;
}

CUresult emulated_cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t alignment, CUdeviceptr hint,
                                      unsigned long long flags) {
    bool power = !(alignment & (alignment - 1));
    if (!address || !size || size % GRANULARITY || !power || flags)
        return CUDA_ERROR_INVALID_VALUE;
    alignment = alignment < GRANULARITY ? GRANULARITY : alignment;
    uintptr_t start = hint && !(hint % alignment) && is_free(hint, size) ? hint : find_free(size, alignment);
    if (!start)
        return CUDA_ERROR_OUT_OF_MEMORY;
    Range *range = claim(sizeof *range);
    *range = (Range){start, size, ranges};
    ranges = range;
    *address = start;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemAddressFree(CUdeviceptr address, size_t size) {
    for (Range **link = &ranges; *link; link = &(*link)->next) {
        Range *range = *link;
        if (range->address != address || range->size != size)
            continue;
        if (allocation_across(address, size))
            return CUDA_ERROR_INVALID_VALUE;
        *link = range->next;
        free(range);
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult check_properties(const CUmemAllocationProp *properties) {
    if (!properties || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (properties->requestedHandleTypes & ~(unsigned)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    return device_at(properties->location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult emulated_cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *properties,
                                                CUmemAllocationGranularity_flags which) {
    (void)which;
    CUresult result = granularity ? check_properties(properties) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *granularity = GRANULARITY;
    return result;
}

static Block *find_block(CUmemGenericAllocationHandle handle) {
    return object_find((void *)handle, OBJECT_BLOCK);
}

static void end_if_unused(Block *block) {
    if (block->references || block->mappings)
        return;
    if (!block->imported)
        device_refund(block->device, block->size);
    close(block->file);
    free(block);
}

static bool fill_file(const Block *block) {
    Tail tail = {.properties = block->properties};
    memcpy(tail.magic, magic, sizeof magic);
    if (block->file < 0 || ftruncate(block->file, (off_t)block->size) ||
        pwrite(block->file, &tail, sizeof tail, (off_t)block->size) != sizeof tail)
        return false;
    if (settings.poison < 0)
        return true;
    void *bytes = mmap(NULL, block->size, PROT_READ | PROT_WRITE, MAP_SHARED, block->file, 0);
    if (bytes == MAP_FAILED)
        return false;
    memset(bytes, settings.poison, block->size);
    munmap(bytes, block->size);
    return true;
}

CUresult emulated_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *properties,
                              unsigned long long flags) {
    CUresult result = check_properties(properties);
    if (result)
        return result;
    if (!handle || !size || size % GRANULARITY || flags)
        return CUDA_ERROR_INVALID_VALUE;
    Device *device = &devices[properties->location.id];
    if ((result = device_charge(device, size)))
        return result;
    Block *block = claim(sizeof *block);
    block->properties = *properties;
    block->device = device;
    block->size = size;
    block->references = 1;
    block->file = memfd_create("cuda memory", MFD_CLOEXEC);
    if (!fill_file(block)) {
        block->references = 0;
        end_if_unused(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = (CUmemGenericAllocationHandle)object_open(&block->object, OBJECT_BLOCK, NULL);
    call_note("bytes", size);
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemRelease(CUmemGenericAllocationHandle handle) {
    Block *block = find_block(handle);
    if (!block)
        return CUDA_ERROR_INVALID_VALUE;
    if (--block->references == 0)
        object_close(&block->object);
    end_if_unused(block);
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    const Allocation *allocation = allocation_at((uintptr_t)address);
    if (!handle || !allocation || !allocation->mapped)
        return CUDA_ERROR_INVALID_VALUE;
    Block *block = allocation->mapped;
    block->references++;
    if (!block->object.handle)
        object_open(&block->object, OBJECT_BLOCK, NULL);
    *handle = (CUmemGenericAllocationHandle)block->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *properties,
                                                         CUmemGenericAllocationHandle handle) {
    const Block *block = find_block(handle);
    if (!properties || !block)
        return CUDA_ERROR_INVALID_VALUE;
    *properties = block->properties;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemMap(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                           unsigned long long flags) {
    Block *block = find_block(handle);
    const Range *range = range_across(address, size);
    bool reserved = range && address >= range->address && address + size <= range->address + range->size;
    /* Of a block, all is mapped: the driver has no other form yet. */
    if (!block || flags || offset || !size || size != block->size || !reserved || allocation_across(address, size))
        return CUDA_ERROR_INVALID_VALUE;
    if (!range_fill(address, size, block->file, 0))
        return CUDA_ERROR_OUT_OF_MEMORY;
    Allocation *allocation = claim(sizeof *allocation);
    *allocation = (Allocation){.address = address,
                               .size = size,
                               .bytes = range_bytes(address),
                               .block = address,
                               .block_size = size,
                               .place = PLACE_MAPPED,
                               .device = block->device,
                               .shared = true,
                               .mapped = block};
    allocation_add(allocation);
    block->mappings++;
    return CUDA_SUCCESS;
}

void block_unmapped(Block *block) {
    block->mappings--;
    end_if_unused(block);
}

/* Calls `change` for the mappings that fill a range exactly; false, and nothing is called, if they do not. */
static bool for_mappings(CUdeviceptr address, size_t size, void (*change)(Allocation *allocation, const void *data),
                         const void *data) {
    uintptr_t end = address + size;
    for (uintptr_t at = address; at < end;) {
        const Allocation *allocation = allocation_across(at, 1);
        if (!allocation || !allocation->mapped || allocation->address != at || at + allocation->size > end)
            return false;
        at += allocation->size;
    }
    for (uintptr_t at = address; at < end;) {
        Allocation *allocation = allocation_across(at, 1);
        at += allocation->size;
        change(allocation, data);
    }
    return size;
}

static void unmap(Allocation *allocation, const void *data) {
    (void)data;
    allocation_end(allocation);
}

CUresult emulated_cuMemUnmap(CUdeviceptr address, size_t size) {
    return for_mappings(address, size, unmap, NULL) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static void set_access(Allocation *allocation, const void *data) {
    const CUmemAccessDesc *access = data;
    uint32_t bit = 1u << access->location.id;
    allocation->access =
        access->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE ? allocation->access & ~bit : allocation->access | bit;
}

CUresult emulated_cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc *list, size_t count) {
    if (!list || !count)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        const Allocation *allocation = allocation_at(address);
        if (list[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || !allocation || !allocation->mapped)
            return CUDA_ERROR_INVALID_VALUE;
        int ordinal = list[i].location.id, owner = allocation->device->ordinal;
        if (!device_at(ordinal) || (ordinal != owner && !(settings.peers[ordinal] >> owner & 1)))
            return CUDA_ERROR_INVALID_DEVICE;
        if (!for_mappings(address, size, set_access, &list[i]))
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address) {
    const Allocation *allocation = allocation_at(address);
    if (!flags || !location || !allocation || !allocation->mapped || !device_at(location->id))
        return CUDA_ERROR_INVALID_VALUE;
    bool may = allocation->access >> location->id & 1;
    *flags = may ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemExportToShareableHandle(void *exported, CUmemGenericAllocationHandle handle,
                                               CUmemAllocationHandleType type, unsigned long long flags) {
    const Block *block = find_block(handle);
    if (!exported || !block || flags || !(block->properties.requestedHandleTypes & type) ||
        type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    int copy = fcntl(block->file, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    *(int *)exported = copy;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *exported,
                                                 CUmemAllocationHandleType type) {
    Tail tail;
    struct stat status;
    if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    int file = fcntl((int)(intptr_t)exported, F_DUPFD_CLOEXEC, 0);
    if (file < 0)
        return CUDA_ERROR_INVALID_VALUE;
    off_t size = fstat(file, &status) ? 0 : status.st_size - (off_t)sizeof tail;
    bool ours =
        size > 0 && pread(file, &tail, sizeof tail, size) == sizeof tail && !memcmp(tail.magic, magic, sizeof magic);
    if (!ours || check_properties(&tail.properties)) {
        close(file);
        return CUDA_ERROR_INVALID_VALUE;
    }
    Block *block = claim(sizeof *block);
    *block = (Block){.properties = tail.properties,
                     .device = &devices[tail.properties.location.id],
                     .size = (size_t)size,
                     .references = 1,
                     .file = file,
                     .imported = true};
    *handle = (CUmemGenericAllocationHandle)object_open(&block->object, OBJECT_BLOCK, NULL);
    return CUDA_SUCCESS;
}

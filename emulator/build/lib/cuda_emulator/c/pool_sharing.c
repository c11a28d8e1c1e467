/* Pools shared between processes. All memory of such a pool lies in one file without a name; its descriptor is the
 * pool's handle, and a pointer is told as a place in the file. The first page says what the pool is. The importing
 * process maps the same pages at addresses of its own; it counts no memory, since that is counted where it was
 * allocated. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "call.h"
#include "pool.h"

typedef struct Head {
    char magic[16];
    CUmemLocation location;
} Head;

static const char magic[16] = "emulated pool 1";

/* What stands in CUmemPoolPtrExportData. */
typedef struct Pointer {
    char magic[16];
    size_t offset, size;
} Pointer;

static bool extend(const Pool *pool, size_t end) {
    return ftruncate(pool->file, (off_t)end) == 0;
}

bool pool_share(Pool *pool) {
    Head head = {.location = pool->properties.location};
    memcpy(head.magic, magic, sizeof magic);
    pool->file = memfd_create("cuda memory pool", MFD_CLOEXEC);
    pool->file_end = PAGE;
    return pool->file >= 0 && extend(pool, PAGE) && pwrite(pool->file, &head, sizeof head, 0) == sizeof head;
}

bool pool_file_grow(Pool *pool, size_t size) {
    size_t end = pool->file_end + round_up(size, PAGE);
    if (!extend(pool, end))
        return false;
    pool->file_end = end;
    return true;
}

void pool_file_punch(const Pool *pool, size_t offset, size_t size) {
    if (fallocate(pool->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)round_up(size, PAGE)))
        say("the memory of a shared pool cannot be given back to the system");
}

CUresult emulated_cuMemPoolExportToShareableHandle(void *exported, CUmemoryPool handle, CUmemAllocationHandleType type,
                                                   unsigned long long flags) {
    const Pool *pool = pool_find(handle);
    if (!exported || !pool || flags || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || pool->file < 0 ||
        pool->imported)
        return CUDA_ERROR_INVALID_VALUE;
    int copy = fcntl(pool->file, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    *(int *)exported = copy;
    return CUDA_SUCCESS;
}

/* The descriptor stays the caller's, who passes it as a pointer-sized number. */
CUresult emulated_cuMemPoolImportFromShareableHandle(CUmemoryPool *handle, void *exported,
                                                     CUmemAllocationHandleType type, unsigned long long flags) {
    Head head;
    if (!handle || flags || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    int file = fcntl((int)(intptr_t)exported, F_DUPFD_CLOEXEC, 0);
    if (file < 0)
        return CUDA_ERROR_INVALID_VALUE;
    bool ours = pread(file, &head, sizeof head, 0) == sizeof head && !memcmp(head.magic, magic, sizeof magic);
    if (!ours || (head.location.type == CU_MEM_LOCATION_TYPE_DEVICE && !device_at(head.location.id))) {
        close(file);
        return ours ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE;
    }
    CUmemPoolProps properties = {
        .allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .handleTypes = type, .location = head.location};
    Pool *pool = pool_new(&properties);
    pool->file = file;
    pool->imported = true;
    *handle = pool->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemPoolExportPointer(CUmemPoolPtrExportData *data, CUdeviceptr address) {
    const Allocation *allocation = allocation_at(address);
    if (!data || !allocation || allocation->address != address || !allocation->pool || allocation->pool->file < 0 ||
        allocation->leaving)
        return CUDA_ERROR_INVALID_VALUE;
    Pointer pointer = {.offset = allocation->offset, .size = allocation->size};
    memcpy(pointer.magic, magic, sizeof magic);
    _Static_assert(sizeof pointer <= sizeof *data, "the place in the file fits");
    memset(data, 0, sizeof *data);
    memcpy(data, &pointer, sizeof pointer);
    return CUDA_SUCCESS;
}

CUresult emulated_cuMemPoolImportPointer(CUdeviceptr *address, CUmemoryPool handle, CUmemPoolPtrExportData *data) {
    Pool *pool = pool_find(handle);
    Pointer pointer;
    Context *context;
    if (!address || !pool || !pool->imported || !data)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = context_current(&context);
    if (result)
        return result;
    memcpy(&pointer, data, sizeof pointer);
    off_t end = lseek(pool->file, 0, SEEK_END);
    bool inside =
        pointer.size && end > 0 && pointer.offset <= (size_t)end && pointer.size <= (size_t)end - pointer.offset;
    if (memcmp(pointer.magic, magic, sizeof magic) || !inside)
        return CUDA_ERROR_INVALID_VALUE;
    Allocation *allocation = allocation_new(pool->place, pool->device, pointer.size,
                                            (Backing){.file = pool->file, .offset = pointer.offset});
    if (!allocation)
        return CUDA_ERROR_OUT_OF_MEMORY;
    allocation->pool = pool;
    allocation->context = context;
    pool->n_allocations++;
    *address = allocation->address;
    call_note("bytes", pointer.size);
    return CUDA_SUCCESS;
}

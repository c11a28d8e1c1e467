/* Memory pools. */
#ifndef EMULATOR_POOL_H
#define EMULATOR_POOL_H

#include "memory.h"

struct Pool {
    Object object; /* its handle closed: it ends with its last allocation */
    CUmemPoolProps properties;
    Place place;
    Device *device; /* NULL: host memory */
    size_t used, most_used; /* bytes of its allocations */
    size_t reserved, most_reserved; /* bytes that it holds of the device, `used` included */
    cuuint64_t keep; /* bytes that it may hold unused: the release threshold */
    int follow_events, opportunistic, internal_dependencies; /* attributes of reuse */
    uint32_t access; /* bit j: device j may use its memory */
    size_t n_allocations;
    Allocation *leaving; /* whose free is submitted, the oldest first */
    bool is_default;
    bool imported; /* of another process: gives no memory out */
    int file; /* -1, or what all its memory lies in, so that other processes can map it */
    size_t file_end;
    Pool *next;
};

Pool *pool_find(CUmemoryPool handle);

/* The pool that needs not be made, for a location and type; NULL: there is none such. */
Pool *pool_default(CUmemLocationType where, int id, CUmemAllocationType type);

Pool *pool_new(const CUmemPoolProps *properties);
void pool_close(Pool *pool);

/* Memory that was reserved and is not used goes back to the device. */
void pool_trim(Pool *pool, size_t keep);
void pools_give_back(Device *device);

/* pool_memory.c */

/* Memory for an allocation submitted to `stream`, `after` extended by what it must come after; NULL: out of memory. */
Allocation *pool_allocate(Pool *pool, size_t size, const Stream *stream, Order *after);

/* An allocation of the pool has ended. */
void pool_take_back(Allocation *allocation);

bool pool_may_access(const Pool *pool, const Device *device);

/* pool_sharing.c */

/* Puts what the pool will allocate into a file. */
bool pool_share(Pool *pool);

/* The file gets longer by `size` bytes; the pages of a part are given back. */
bool pool_file_grow(Pool *pool, size_t size);
void pool_file_punch(const Pool *pool, size_t offset, size_t size);

#endif

/* Devices, contexts, and what a thread has of them. */
#ifndef EMULATOR_CONTEXT_H
#define EMULATOR_CONTEXT_H

#include "object.h"

typedef struct Stream Stream;
typedef struct Pool Pool;

typedef struct Device {
    int ordinal;
    int physical; /* its ordinal where all devices are visible */
    size_t total; /* bytes */
    size_t used; /* bytes, what pools hold in reserve included */
    Context *primary;
    Pool *default_pool;
    Pool *pool; /* of cuMemAllocAsync */
    bool lost;
    uint64_t ahead_ns; /* declared times that have passed, which events count beside those of the clock */
} Device;

extern Device devices[MAX_DEVICES];

/* A context's record is never freed: operations and thread stacks may name it after its end. */
struct Context {
    Object object;
    Device *device;
    unsigned retained; /* of a primary context */
    bool alive;
    unsigned flags;
    uint64_t id;
    uint32_t peers; /* bit j: may access memory of device j */
    CUresult broken; /* the sticky error, or CUDA_SUCCESS */
    bool kernels_ran; /* since red zones were last checked */
    size_t limits[CU_LIMIT_MAX];
    Stream *legacy;
    Stream *streams; /* every stream with a worker or a handle, the legacy one included */
    Context *next; /* of all that ever were */
};

/* Takes a context record into the list of all, the first of which is contexts_first(). */
Context *context_new(Device *device);
Context *contexts_first(void);

/* NULL where there is no such device. */
Device *device_at(CUdevice ordinal);
bool devices_open(void); /* false: none is visible */

/* visible.c: fills in the physical ordinals of the visible devices and returns how many they are; and how a device is
 * named. */
enum { UUID_TEXT = 41 };
int visible_devices(int *physical);
void uuid_bytes(int physical, char *bytes);
void uuid_text(int physical, char *text);

/* Counts memory of the device; CUDA_ERROR_OUT_OF_MEMORY when it has not so much left. */
CUresult device_charge(Device *device, size_t bytes);
void device_refund(Device *device, size_t bytes);

void device_lose(Device *device);
void device_restore(Device *device);

/* The calling thread's context, or NULL. */
Context *context_top(void);

/* The calling thread's context, usable; otherwise the error that says why there is none. */
CUresult context_current(Context **context);

/* CUDA_SUCCESS, the sticky error, or that it is destroyed. */
CUresult context_state(const Context *context);

/* NULL: no such handle. */
Context *context_find(CUcontext handle);

/* The first error stays; every later call with this context fails with it. */
void context_break(Context *context, CUresult error, const char *what);

/* Waits until everything submitted so far is done. */
CUresult context_wait(Context *context);

/* Ends streams, memory and everything else that belongs to the context. */
void context_end(Context *context);

/* Looks for writes outside of allocations since the last time; the state of the context, which they break. */
CUresult context_check_zones(Context *context);

/* Peer access of an allocation's owner. */
bool context_may_access(const Context *context, const Device *owner);

#endif

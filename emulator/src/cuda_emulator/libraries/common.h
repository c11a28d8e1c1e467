/* What the emulated libraries share: handles that belong to a context and to one thread at a time, and kernels that are
 * launched through the driver, as anybody's are. So the order of their work, its delays, its faults and its access to
 * memory are the driver's, and nothing is computed or read before its turn in the stream. */
#ifndef EMULATED_COMMON_H
#define EMULATED_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda.h>

#include "shapes.h"

#define PUBLIC __attribute__((visibility("default")))

typedef struct Handle {
    bool alive; /* its record stays after its end, so that later uses are told apart from wild pointers */
    CUcontext context;
    CUdevice device;
    CUstream stream;
    uintptr_t inside; /* the thread that is in a call with it, or 0 */
    void *workspace;
    size_t workspace_bytes;
    const char *kind; /* as the report of the emulator names it */
    uint64_t seed, offset; /* of a generator of random numbers */
    struct Handle *next;
} Handle;

typedef enum Refusal {
    FINE,
    NO_HANDLE, /* it was never one */
    DESTROYED,
    ELSEWHERE, /* another context than that of its creation is current */
    NO_CONTEXT,
    INJECTED, /* a fault for this call */
} Refusal;

/* Makes a handle of the current context. On success it is the caller's to destroy. */
CUresult handle_create(const char *call, const char *kind, Handle **handle);
CUresult handle_destroy(Handle *handle);

/* Stands around every call with a handle. Two threads in one handle at a time are a hazard in the emulator's report. */
Refusal handle_enter(const char *call, void *given, Handle **handle);
void handle_leave(Handle *handle);

/* The fault with which handle_enter last answered INJECTED in this thread. */
CUresult injected(void);

/* Why, as text. */
const char *refusal_text(Refusal refusal);

/* Whether the stream is one of the handle's context. */
bool handle_may_use(const Handle *handle, CUstream stream);

/* Queues a kernel of kernels.cu on the handle's stream. */
CUresult handle_launch(const Handle *handle, const char *kernel, unsigned x, unsigned y, void **params);

CUresult queue_product(const Handle *handle, const float *a, const float *b, float *c, Product sizes);

#endif

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "control.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows; no other lock is taken under it */
static Handle *handles;
static size_t n_alive;
static CUlibrary kernels; /* loaded while there are handles */

/* The image lies beside this library. */
static CUresult load_kernels(CUlibrary *loaded) {
    Dl_info here;
    char path[4096];
    if (!dladdr(load_kernels, &here) || !strrchr(here.dli_fname, '/'))
        return CUDA_ERROR_FILE_NOT_FOUND;
    int folder = (int)(strrchr(here.dli_fname, '/') - here.dli_fname);
    int n = snprintf(path, sizeof path, "%.*s/kernels.so", folder, here.dli_fname);
    int file = n < (int)sizeof path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    struct stat told;
    if (file < 0)
        return CUDA_ERROR_FILE_NOT_FOUND;
    void *image = fstat(file, &told) ? MAP_FAILED : mmap(NULL, (size_t)told.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (image == MAP_FAILED)
        return CUDA_ERROR_OPERATING_SYSTEM;
    CUresult result = cuLibraryLoadData(loaded, image, NULL, NULL, 0, NULL, NULL, 0);
    munmap(image, (size_t)told.st_size);
    return result;
}

CUresult handle_create(const char *call, const char *kind, Handle **made) {
    CUcontext context = NULL;
    CUdevice device;
    CUresult result = (CUresult)emulator_library_call(call);
    if (result || (result = cuCtxGetCurrent(&context)))
        return result;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    CUlibrary loaded = NULL;
    if ((result = cuCtxGetDevice(&device)) || (result = load_kernels(&loaded)))
        return result;
    Handle *handle = calloc(1, sizeof *handle);
    if (!handle) {
        cuLibraryUnload(loaded);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = (Handle){.alive = true, .context = context, .device = device, .kind = kind};
    pthread_mutex_lock(&lock);
    handle->next = handles;
    handles = handle;
    if (n_alive++ == 0) {
        kernels = loaded;
        loaded = NULL;
    }
    pthread_mutex_unlock(&lock);
    if (loaded) /* another handle has brought them */
        cuLibraryUnload(loaded);
    emulator_library_object(kind, 1);
    *made = handle;
    return CUDA_SUCCESS;
}

CUresult handle_destroy(Handle *handle) {
    CUlibrary unused = NULL;
    pthread_mutex_lock(&lock);
    handle->alive = false;
    if (--n_alive == 0) {
        unused = kernels;
        kernels = NULL;
    }
    pthread_mutex_unlock(&lock);
    emulator_library_object(handle->kind, -1);
    return unused ? cuLibraryUnload(unused) : CUDA_SUCCESS; /* launches that are queued keep the image */
}

static Handle *find(const void *given) {
    Handle *handle = handles;
    while (handle && handle != given)
        handle = handle->next;
    return handle;
}

static void report_two_threads(const char *call, const Handle *handle) {
    char text[200];
    snprintf(text, sizeof text, "%s: two threads use the handle %p of device %d at the same time", call,
             (const void *)handle, (int)handle->device);
    emulator_add_hazard(text);
}

static _Thread_local CUresult last_fault;

Refusal handle_enter(const char *call, void *given, Handle **found) {
    pthread_mutex_lock(&lock);
    Handle *handle = find(given);
    bool alive = handle && handle->alive;
    pthread_mutex_unlock(&lock);
    if (!alive)
        return handle ? DESTROYED : NO_HANDLE;
    uintptr_t nobody = 0, me = (uintptr_t)pthread_self();
    if (!__atomic_compare_exchange_n(&handle->inside, &nobody, me, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        report_two_threads(call, handle);
    CUcontext context = NULL;
    Refusal refusal = FINE;
    if ((last_fault = (CUresult)emulator_library_call(call)))
        refusal = INJECTED;
    else if (cuCtxGetCurrent(&context) || !context)
        refusal = NO_CONTEXT;
    else if (context != handle->context)
        refusal = ELSEWHERE;
    *found = handle;
    if (refusal)
        handle_leave(handle);
    return refusal;
}

CUresult injected(void) {
    return last_fault;
}

void handle_leave(Handle *handle) {
    uintptr_t me = (uintptr_t)pthread_self();
    __atomic_compare_exchange_n(&handle->inside, &me, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

const char *refusal_text(Refusal refusal) {
    switch (refusal) {
    case FINE:
        return "no error";
    case NO_HANDLE:
        return "this is no handle of the library";
    case DESTROYED:
        return "the handle is destroyed";
    case ELSEWHERE:
        return "the handle belongs to another context than the current one";
    case NO_CONTEXT:
        return "no CUDA context is current";
    case INJECTED:
        return "a fault was injected";
    }
    return "unknown";
}

bool handle_may_use(const Handle *handle, CUstream stream) {
    CUcontext owner = NULL;
    return !stream || (!cuStreamGetCtx(stream, &owner) && owner == handle->context);
}

CUresult handle_launch(const Handle *handle, const char *kernel, unsigned x, unsigned y, void **params) {
    CUkernel found;
    pthread_mutex_lock(&lock);
    CUlibrary library = kernels;
    pthread_mutex_unlock(&lock);
    CUresult result = cuLibraryGetKernel(&found, library, kernel);
    return result ? result : cuLaunchKernel((CUfunction)found, x, y, 1, 1, 1, 1, 0, handle->stream, params, NULL);
}

CUresult queue_product(const Handle *handle, const float *a, const float *b, float *c, Product sizes) {
    void *params[] = {&a, &b, &c, &sizes};
    return handle_launch(handle, "product", (unsigned)sizes.m, 1, params);
}

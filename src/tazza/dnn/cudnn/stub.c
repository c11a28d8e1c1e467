/* A stand-in for NVIDIA's driver library where there is none: the 33 functions that cuDNN looks for while it plans.
 *
 * It tells the truth, that there is no device and nothing was initialised, and never claims that a call succeeded
 * which did not. cuDeviceGetCount says NOT_INITIALIZED and not NO_DEVICE: after the latter cuDNN tries to load the
 * kernels that it compiled, which no machine without a device can. Only ever loaded in a process of its own.
 */
#include <stddef.h>

typedef int Status;

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100 };

Status cuInit(unsigned int flags) {
    (void)flags;
    return NO_DEVICE;
}

/* The documented answer where no driver is installed. */
Status cuDriverGetVersion(int *version) {
    if (version == NULL) return INVALID_VALUE;
    *version = 0;
    return SUCCESS;
}

static Status describe(Status status, const char **text, const char *uninitialised, const char *none) {
    if (text == NULL) return INVALID_VALUE;
    *text = status == NOT_INITIALIZED ? uninitialised : status == NO_DEVICE ? none : NULL;
    return *text == NULL ? INVALID_VALUE : SUCCESS;
}

Status cuGetErrorName(Status status, const char **text) {
    return describe(status, text, "CUDA_ERROR_NOT_INITIALIZED", "CUDA_ERROR_NO_DEVICE");
}

Status cuGetErrorString(Status status, const char **text) {
    return describe(status, text, "not initialised: there is no CUDA driver here", "there is no CUDA device here");
}

Status cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    (void)name, (void)version, (void)flags;
    if (function != NULL) *function = NULL;
    return NOT_INITIALIZED;
}

Status cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found) {
    (void)found;
    return cuGetProcAddress(name, function, version, flags);
}

#define REFUSED(name) \
    Status name(void) { return NOT_INITIALIZED; }

REFUSED(cuDeviceGetCount)
REFUSED(cuDeviceGet)
REFUSED(cuCtxGetCurrent)
REFUSED(cuCtxGetLimit)
REFUSED(cuCtxPopCurrent)
REFUSED(cuCtxPushCurrent)
REFUSED(cuStreamGetCtx)
REFUSED(cuModuleLoadData)
REFUSED(cuModuleGetFunction)
REFUSED(cuModuleUnload)
REFUSED(cuLibraryLoadData)
REFUSED(cuLibraryLoadFromFile)
REFUSED(cuLibraryGetKernel)
REFUSED(cuLibraryUnload)
REFUSED(cuKernelGetFunction)
REFUSED(cuKernelGetAttribute)
REFUSED(cuKernelSetAttribute)
REFUSED(cuLinkCreate)
REFUSED(cuLinkAddData)
REFUSED(cuLinkComplete)
REFUSED(cuLinkDestroy)
REFUSED(cuLaunchKernel)
REFUSED(cuLaunchKernelEx)
REFUSED(cuLaunchCooperativeKernel)
REFUSED(cuOccupancyMaxPotentialClusterSize)
REFUSED(cuTensorMapEncodeTiled)
REFUSED(cuTensorMapEncodeIm2col)

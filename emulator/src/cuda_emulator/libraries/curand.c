/* libcurand.so.10: generators of Philox numbers, uniform in float32. The numbers are those of Philox 4x32-10 by the seed
 * and the offset, in an order of our own: not the ones that NVIDIA's library gives. */
#include "common.h"
#include "control.h"

enum {
    SUCCESS = 0,
    NOT_INITIALIZED = 101,
    ALLOCATION_FAILED = 102,
    TYPE_ERROR = 103,
    OUT_OF_RANGE = 104,
    LAUNCH_FAILURE = 201,
    INITIALIZATION_FAILED = 203,
    VERSION = 100300,
};

enum { PHILOX4_32_10 = 161, EACH = 1024 }; /* EACH: numbers of a block */

typedef int Status;

static Status status_of(CUresult result) {
    return !result ? SUCCESS : result == CUDA_ERROR_OUT_OF_MEMORY ? ALLOCATION_FAILED : LAUNCH_FAILURE;
}

static Status enter(const char *call, void *given, Handle **handle) {
    Refusal refusal = handle_enter(call, given, handle);
    return !refusal ? SUCCESS : refusal == INJECTED ? status_of(injected()) : NOT_INITIALIZED;
}

PUBLIC const char *emulated_library(void) {
    return "curand";
}

PUBLIC Status curandGetVersion(int *version) {
    CUresult fault = (CUresult)emulator_library_call("curandGetVersion");
    if (fault || !version)
        return fault ? status_of(fault) : OUT_OF_RANGE;
    *version = VERSION;
    return SUCCESS;
}

PUBLIC Status curandGetProperty(int property, int *value) {
    static const int values[] = {VERSION / 10000, VERSION / 100 % 100, VERSION % 100};
    CUresult fault = (CUresult)emulator_library_call("curandGetProperty");
    if (fault)
        return status_of(fault);
    if (!value || property < 0 || property > 2)
        return OUT_OF_RANGE;
    *value = values[property];
    return SUCCESS;
}

PUBLIC Status curandCreateGenerator(void **generator, int kind) {
    if (!generator || kind != PHILOX4_32_10)
        return generator ? TYPE_ERROR : OUT_OF_RANGE;
    CUresult result = handle_create("curandCreateGenerator", "curandGenerator", (Handle **)generator);
    bool memory = result == CUDA_ERROR_OUT_OF_MEMORY;
    return !result ? SUCCESS : memory ? ALLOCATION_FAILED : INITIALIZATION_FAILED;
}

PUBLIC Status curandDestroyGenerator(void *given) {
    Handle *handle;
    Status status = enter("curandDestroyGenerator", given, &handle);
    if (status)
        return status;
    handle_leave(handle);
    return status_of(handle_destroy(handle));
}

PUBLIC Status curandSetStream(void *given, CUstream stream) {
    Handle *handle;
    Status status = enter("curandSetStream", given, &handle);
    if (status)
        return status;
    bool fine = handle_may_use(handle, stream);
    if (fine)
        handle->stream = stream;
    handle_leave(handle);
    return fine ? SUCCESS : OUT_OF_RANGE;
}

PUBLIC Status curandSetPseudoRandomGeneratorSeed(void *given, unsigned long long seed) {
    Handle *handle;
    Status status = enter("curandSetPseudoRandomGeneratorSeed", given, &handle);
    if (status)
        return status;
    handle->seed = seed;
    handle->offset = 0;
    handle_leave(handle);
    return SUCCESS;
}

PUBLIC Status curandSetGeneratorOffset(void *given, unsigned long long offset) {
    Handle *handle;
    Status status = enter("curandSetGeneratorOffset", given, &handle);
    if (status)
        return status;
    handle->offset = offset;
    handle_leave(handle);
    return SUCCESS;
}

PUBLIC Status curandGenerateUniform(void *given, float *numbers, size_t n) {
    Handle *handle;
    Status status = enter("curandGenerateUniform", given, &handle);
    if (status)
        return status;
    unsigned long long seed = handle->seed, offset = handle->offset;
    long count = (long)n;
    void *params[] = {&numbers, &count, &seed, &offset};
    if (n && !numbers)
        status = OUT_OF_RANGE;
    else if (n)
        status = status_of(handle_launch(handle, "uniform", (unsigned)((n + EACH - 1) / EACH), 1, params));
    if (!status)
        handle->offset += n;
    handle_leave(handle);
    return status;
}

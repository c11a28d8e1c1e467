/* libcublas.so.13: handles and one gemm of float32, column by column as BLAS has it. */
#include "common.h"
#include "control.h"

enum {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    ALLOC_FAILED = 3,
    INVALID_VALUE = 7,
    MAPPING_ERROR = 11,
    EXECUTION_FAILED = 13,
    INTERNAL_ERROR = 14,
    NOT_SUPPORTED = 15,
    VERSION = 130000,
};

enum { AS_IT_IS, TRANSPOSED, CONJUGATED };

typedef int Status;

static Status status_of(CUresult result) {
    return !result ? SUCCESS : result == CUDA_ERROR_OUT_OF_MEMORY ? ALLOC_FAILED : EXECUTION_FAILED;
}

static Status status_of_refusal(Refusal refusal) {
    switch (refusal) {
    case FINE:
        return SUCCESS;
    case INJECTED:
        return status_of(injected());
    case ELSEWHERE:
        return MAPPING_ERROR;
    default:
        return NOT_INITIALIZED;
    }
}

PUBLIC const char *emulated_library(void) {
    return "cublas";
}

PUBLIC Status cublasCreate_v2(void **handle) {
    if (!handle)
        return INVALID_VALUE;
    CUresult result = handle_create("cublasCreate", "cublasHandle", (Handle **)handle);
    bool none = result == CUDA_ERROR_NOT_INITIALIZED || result == CUDA_ERROR_INVALID_CONTEXT;
    return none ? NOT_INITIALIZED : status_of(result);
}

PUBLIC Status cublasDestroy_v2(void *given) {
    Handle *handle;
    Refusal refusal = handle_enter("cublasDestroy", given, &handle);
    if (refusal)
        return status_of_refusal(refusal);
    handle_leave(handle);
    return status_of(handle_destroy(handle));
}

PUBLIC Status cublasGetVersion_v2(void *handle, int *version) {
    (void)handle;
    CUresult fault = (CUresult)emulator_library_call("cublasGetVersion");
    if (fault || !version)
        return fault ? status_of(fault) : INVALID_VALUE;
    *version = VERSION;
    return SUCCESS;
}

PUBLIC Status cublasGetProperty(int property, int *value) {
    static const int values[] = {VERSION / 10000, VERSION / 100 % 100, VERSION % 100};
    CUresult fault = (CUresult)emulator_library_call("cublasGetProperty");
    if (fault)
        return status_of(fault);
    if (!value || property < 0 || property > 2)
        return INVALID_VALUE;
    *value = values[property];
    return SUCCESS;
}

PUBLIC Status cublasSetStream_v2(void *given, CUstream stream) {
    Handle *handle;
    Refusal refusal = handle_enter("cublasSetStream", given, &handle);
    if (refusal)
        return status_of_refusal(refusal);
    bool fine = handle_may_use(handle, stream);
    if (fine) {
        handle->stream = stream;
        handle->workspace = NULL; /* as the real one: the user's workspace was for the stream before */
        handle->workspace_bytes = 0;
    }
    handle_leave(handle);
    return fine ? SUCCESS : MAPPING_ERROR;
}

PUBLIC Status cublasGetStream_v2(void *given, CUstream *stream) {
    Handle *handle;
    Refusal refusal = handle_enter("cublasGetStream", given, &handle);
    if (refusal)
        return status_of_refusal(refusal);
    if (stream)
        *stream = handle->stream;
    handle_leave(handle);
    return stream ? SUCCESS : INVALID_VALUE;
}

PUBLIC Status cublasSetWorkspace_v2(void *given, void *workspace, size_t bytes) {
    Handle *handle;
    Refusal refusal = handle_enter("cublasSetWorkspace", given, &handle);
    if (refusal)
        return status_of_refusal(refusal);
    bool fine = (uintptr_t)workspace % 256 == 0 && (workspace || !bytes);
    if (fine) {
        handle->workspace = workspace;
        handle->workspace_bytes = bytes;
    }
    handle_leave(handle);
    return fine ? SUCCESS : INVALID_VALUE;
}

static bool is_operation(int operation) {
    return operation >= AS_IT_IS && operation <= CONJUGATED;
}

PUBLIC Status cublasSgemm_v2(void *given, int op_a, int op_b, int m, int n, int k, const float *alpha, const float *a,
                             int lda, const float *b, int ldb, const float *beta, float *c, int ldc) {
    Handle *handle;
    Refusal refusal = handle_enter("cublasSgemm", given, &handle);
    if (refusal)
        return status_of_refusal(refusal);
    int rows_a = op_a ? k : m, rows_b = op_b ? n : k;
    bool fine = alpha && beta && is_operation(op_a) && is_operation(op_b) && m >= 0 && n >= 0 && k >= 0 &&
                lda >= (rows_a > 1 ? rows_a : 1) && ldb >= (rows_b > 1 ? rows_b : 1) && ldc >= (m > 1 ? m : 1);
    Status status = fine ? SUCCESS : INVALID_VALUE;
    if (fine && m && n)
        status = status_of(queue_product(handle, a, b, c,
                                         (Product){
                                             .m = m,
                                             .n = n,
                                             .k = k,
                                             .a_row = op_a ? lda : 1,
                                             .a_column = op_a ? 1 : lda,
                                             .b_row = op_b ? ldb : 1,
                                             .b_column = op_b ? 1 : ldb,
                                             .c_row = 1,
                                             .c_column = ldc,
                                             .alpha = *alpha,
                                             .beta = *beta,
                                         }));
    handle_leave(handle);
    return status;
}

PUBLIC const char *cublasGetStatusName(Status status) {
    switch (status) {
    case SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case MAPPING_ERROR:
        return "CUBLAS_STATUS_MAPPING_ERROR";
    case EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
        return "CUBLAS_STATUS_UNKNOWN";
    }
}

PUBLIC const char *cublasGetStatusString(Status status) {
    switch (status) {
    case SUCCESS:
        return "success";
    case NOT_INITIALIZED:
        return "there is no such handle, or no CUDA context";
    case ALLOC_FAILED:
        return "memory could not be had";
    case INVALID_VALUE:
        return "a parameter is wrong";
    case MAPPING_ERROR:
        return "the handle or the stream belongs to another context";
    case EXECUTION_FAILED:
        return "the work could not be queued";
    case NOT_SUPPORTED:
        return "this is not supported";
    default:
        return "an internal error";
    }
}

/* Finding entry points and naming errors, over the generated tables. */
#include <string.h>

#include "call.h"

CUresult emulated_cuGetErrorName(CUresult code, const char **name) {
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    *name = NULL;
    for (int i = 0; i < n_error_names && !*name; i++)
        if (error_names[i].code == code)
            *name = error_names[i].name;
    return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuGetErrorString(CUresult code, const char **text) {
    if (!text)
        return CUDA_ERROR_INVALID_VALUE;
    *text = NULL;
    for (int i = 0; i < n_error_names && !*text; i++)
        if (error_names[i].code == code)
            *text = error_names[i].text;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* The newest form that is not newer than the caller: a caller compiled against 11.8 must get the signature that it
 * knows. */
static const Proc *newest(const char *symbol, int version, int flags) {
    const Proc *best = NULL;
    for (int i = 0; i < n_procs; i++) {
        const Proc *proc = &procs[i];
        if (proc->flags == flags && proc->version <= version && (!best || proc->version > best->version) &&
            !strcmp(proc->name, symbol))
            best = proc;
    }
    return best;
}

static bool is_known(const char *symbol) {
    for (int i = 0; i < n_procs; i++)
        if (!strcmp(procs[i].name, symbol))
            return true;
    return false;
}

CUresult emulated_cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
                                      CUdriverProcAddressQueryResult *status) {
    if (!symbol || !function)
        return CUDA_ERROR_INVALID_VALUE;
    bool per_thread = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    const Proc *proc = per_thread ? newest(symbol, version, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) : NULL;
    if (!proc)
        proc = newest(symbol, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM);
    if (!proc)
        proc = newest(symbol, version, CU_GET_PROC_ADDRESS_DEFAULT);
    *function = proc ? proc->function : NULL;
    if (status)
        *status = proc               ? CU_GET_PROC_ADDRESS_SUCCESS
                  : is_known(symbol) ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                                     : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    /* With `status` to tell it by, a missing symbol is an answer and not an error. */
    return proc || status ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult emulated_cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags) {
    return emulated_cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}

/* The tables behind this call are undocumented, and one of them asks for a proof that only NVIDIA's libraries can give.
 * None is answered: who needs them (the CUDA runtime library) refuses with its own error. */
CUresult emulated_cuGetExportTable(const void **table, const CUuuid *id) {
    (void)id;
    if (table)
        *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}

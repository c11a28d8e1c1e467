/* The calls that load images and find kernels and variables in them. A library belongs to no context, a module to one;
 * a CUkernel and a CUfunction are the same record. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

CUresult emulated_cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit_options, void **jit_values,
                                    unsigned int n_jit, CUlibraryOption *options, void **values,
                                    unsigned int n_options) {
    (void)jit_options, (void)jit_values, (void)n_jit, (void)options, (void)values, (void)n_options;
    Image *image;
    CUresult result = library ? image_open(code, NULL, &image) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *library = image->object.handle;
    return result;
}

CUresult emulated_cuModuleLoadData(CUmodule *module, const void *code) {
    Context *context;
    Image *image;
    CUresult result = module ? context_current(&context) : CUDA_ERROR_INVALID_VALUE;
    if (result || (result = image_open(code, context, &image)))
        return result;
    *module = image->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuModuleLoadDataEx(CUmodule *module, const void *code, unsigned int n, CUjit_option *options,
                                     void **values) {
    (void)n, (void)options, (void)values;
    return emulated_cuModuleLoadData(module, code);
}

CUresult emulated_cuModuleLoadFatBinary(CUmodule *module, const void *code) {
    return emulated_cuModuleLoadData(module, code);
}

/* The whole file with a byte of 0 behind it; NULL: it cannot be read. */
static char *read_file(const char *path) {
    FILE *file = path ? fopen(path, "rbe") : NULL;
    if (!file)
        return NULL;
    char *data = NULL;
    if (!fseek(file, 0, SEEK_END) && ftell(file) >= 0) {
        size_t size = (size_t)ftell(file);
        data = claim(size + 64); /* so much of it is looked at before anything is known of it */
        rewind(file);
        if (fread(data, 1, size, file) != size) {
            free(data);
            data = NULL;
        }
    }
    fclose(file);
    return data;
}

CUresult emulated_cuLibraryLoadFromFile(CUlibrary *library, const char *path, CUjit_option *jit_options,
                                        void **jit_values, unsigned int n_jit, CUlibraryOption *options, void **values,
                                        unsigned int n_options) {
    char *code = read_file(path);
    if (!code)
        return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult result =
        emulated_cuLibraryLoadData(library, code, jit_options, jit_values, n_jit, options, values, n_options);
    free(code);
    return result;
}

CUresult emulated_cuModuleLoad(CUmodule *module, const char *path) {
    char *code = read_file(path);
    if (!code)
        return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult result = emulated_cuModuleLoadData(module, code);
    free(code);
    return result;
}

static CUresult close_image(const void *handle, bool module) {
    Image *image = image_find(handle);
    if (!image || !image->object.context == module)
        return CUDA_ERROR_INVALID_HANDLE;
    image_close(image);
    return CUDA_SUCCESS;
}

CUresult emulated_cuLibraryUnload(CUlibrary library) {
    return close_image(library, false);
}

CUresult emulated_cuModuleUnload(CUmodule module) {
    return close_image(module, true);
}

CUresult emulated_cuModuleGetLoadingMode(CUmoduleLoadingMode *mode) {
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = CU_MODULE_EAGER_LOADING;
    return CUDA_SUCCESS;
}

static CUresult find_kernel(void **kernel, const void *handle, const char *name) {
    const Image *image = image_find(handle);
    if (!kernel || !name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!image)
        return CUDA_ERROR_INVALID_HANDLE;
    Kernel *found = image_kernel(image, name);
    if (!found)
        return CUDA_ERROR_NOT_FOUND;
    *kernel = found->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    return find_kernel((void **)kernel, library, name);
}

CUresult emulated_cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    return find_kernel((void **)function, module, name);
}

CUresult emulated_cuLibraryGetModule(CUmodule *module, CUlibrary library) {
    if (!module)
        return CUDA_ERROR_INVALID_VALUE;
    if (!image_find(library))
        return CUDA_ERROR_INVALID_HANDLE;
    *module = (CUmodule)library;
    return CUDA_SUCCESS;
}

static CUresult list_kernels(const void *handle, void **list, unsigned room, unsigned *count) {
    const Image *image = image_find(handle);
    if (!image)
        return CUDA_ERROR_INVALID_HANDLE;
    unsigned n = 0;
    for (const Kernel *kernel = image->kernels; kernel; kernel = kernel->next, n++)
        if (n < room)
            list[n] = kernel->object.handle;
    if (count)
        *count = n;
    return CUDA_SUCCESS;
}

CUresult emulated_cuLibraryGetKernelCount(unsigned int *count, CUlibrary library) {
    return count ? list_kernels(library, NULL, 0, count) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int room, CUlibrary library) {
    return kernels ? list_kernels(library, (void **)kernels, room, NULL) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuModuleGetFunctionCount(unsigned int *count, CUmodule module) {
    return count ? list_kernels(module, NULL, 0, count) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuModuleEnumerateFunctions(CUfunction *functions, unsigned int room, CUmodule module) {
    return functions ? list_kernels(module, (void **)functions, room, NULL) : CUDA_ERROR_INVALID_VALUE;
}

static CUresult find_variable(CUdeviceptr *address, size_t *size, const void *handle, const char *name) {
    Image *image = image_find(handle);
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    return image ? image_variable(image, name, address, size) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult emulated_cuLibraryGetGlobal(CUdeviceptr *address, size_t *size, CUlibrary library, const char *name) {
    return find_variable(address, size, library, name);
}

CUresult emulated_cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *size, CUmodule module, const char *name) {
    return find_variable(address, size, module, name);
}

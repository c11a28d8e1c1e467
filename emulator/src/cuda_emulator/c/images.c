/* Kernel images: host shared objects (kernel_abi.h) loaded from memory. What real drivers load (PTX, cubins, fat
 * binaries) is refused with CUDA_ERROR_NO_BINARY_FOR_GPU: there is no device here that could run it. */
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "call.h"
#include "image.h"
#include "memory.h"

#if defined(__x86_64__)
enum { HOST_MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { HOST_MACHINE = EM_AARCH64 };
#endif

static CUresult refuse_foreign(const unsigned char *code) {
    static const unsigned char fat_binary[] = {0x50, 0xed, 0x55, 0xba}, wrapper[] = {0xb1, 0x43, 0x62, 0x46};
    bool elf = !memcmp(code, ELFMAG, SELFMAG);
    bool text = code[0] == '/' || code[0] == '.' || code[0] == '\n' || code[0] == ' ';
    return elf || text || !memcmp(code, fat_binary, 4) || !memcmp(code, wrapper, 4) ? CUDA_ERROR_NO_BINARY_FOR_GPU
                                                                                    : CUDA_ERROR_INVALID_IMAGE;
}

static bool is_ours(const Elf64_Ehdr *header) {
    return !memcmp(header->e_ident, ELFMAG, SELFMAG) && header->e_ident[EI_CLASS] == ELFCLASS64 &&
           header->e_machine == HOST_MACHINE && header->e_type == ET_DYN && header->e_shentsize == sizeof(Elf64_Shdr);
}

/* The API tells no size: the file ends with its last section or with the table of sections. */
static size_t size_of(const Elf64_Ehdr *header) {
    const Elf64_Shdr *sections = (const Elf64_Shdr *)((const char *)header + header->e_shoff);
    size_t end = header->e_shoff + (size_t)header->e_shnum * sizeof *sections;
    for (int i = 0; i < header->e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS && sections[i].sh_offset + sections[i].sh_size > end)
            end = sections[i].sh_offset + sections[i].sh_size;
    return end;
}

/* The file stays open as long as the image is loaded: the loader knows libraries by their path, and the path is the
 * descriptor. */
static bool load(Image *image, const void *code, size_t size) {
    image->file = memfd_create("cuda kernel image", MFD_CLOEXEC);
    for (size_t done = 0; image->file >= 0 && done < size;) {
        ssize_t n = write(image->file, (const char *)code + done, size - done);
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    /* A library that cannot be closed (it has unique symbols) stays known by its path, and the number of its file is
     * given to the next image: so each load has a path of its own, its number written in "/" and "/.". */
    static uint32_t loads;
    char path[128] = "/proc/self/fd";
    size_t length = strlen(path);
    loads++;
    for (int bit = 0; bit < 32; bit++)
        length += (size_t)snprintf(path + length, sizeof path - length, loads >> bit & 1 ? "/." : "/");
    snprintf(path + length, sizeof path - length, "/%d", image->file);
    pthread_mutex_unlock(&lock); /* constructors in the image are the client's code */
    image->loaded = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *why = image->loaded ? NULL : dlerror();
    pthread_mutex_lock(&lock);
    if (why)
        say("a kernel image cannot be loaded: %s", why);
    return image->loaded;
}

static char *stem_of(const char *symbol, const char *ending) {
    size_t length = strlen(symbol), rest = strlen(ending);
    if (length <= rest || strcmp(symbol + length - rest, ending))
        return NULL;
    char *stem = claim_copy(symbol, length - rest + 1);
    stem[length - rest] = 0;
    return stem;
}

static void add_kernel(Image *image, char *name, void *launch) {
    char symbol[300];
    snprintf(symbol, sizeof symbol, "%s__params", name);
    const int *params = dlsym(image->loaded, symbol);
    if (!params) {
        say("kernel image: %s__launch has no %s", name, symbol);
        free(name);
        return;
    }
    Kernel *kernel = claim(sizeof *kernel);
    kernel->image = image;
    kernel->name = name;
    kernel->launch = (EmulatorLaunch)launch;
    kernel->params = params;
    kernel->attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024;
    kernel->attributes[CU_FUNC_ATTRIBUTE_NUM_REGS] = 32;
    kernel->attributes[CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES] = 49152;
    kernel->attributes[CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT] = -1;
    kernel->attributes[CU_FUNC_ATTRIBUTE_PTX_VERSION] = settings.compute_major * 10 + settings.compute_minor;
    kernel->attributes[CU_FUNC_ATTRIBUTE_BINARY_VERSION] = settings.compute_major * 10 + settings.compute_minor;
    kernel->next = image->kernels;
    image->kernels = kernel;
    object_open(&kernel->object, OBJECT_KERNEL, image->object.context);
}

static void add_variable(Image *image, char *name, const size_t *size) {
    Variable *variable = claim(sizeof *variable);
    variable->name = name;
    variable->bytes = dlsym(image->loaded, name);
    variable->size = *size;
    variable->next = image->variables;
    image->variables = variable;
}

static void read_symbols(Image *image, const Elf64_Ehdr *header) {
    const char *file = (const char *)header;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_DYNSYM)
            continue;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
        const char *names = file + sections[sections[i].sh_link].sh_offset;
        for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; j++) {
            const char *name = names + symbols[j].st_name;
            if (symbols[j].st_shndx == SHN_UNDEF)
                continue;
            char *kernel = stem_of(name, "__launch"), *variable = stem_of(name, "__global");
            if (kernel)
                add_kernel(image, kernel, dlsym(image->loaded, name));
            if (variable)
                add_variable(image, variable, dlsym(image->loaded, name));
        }
    }
}

Image *image_find(const void *handle) {
    return object_find(handle, OBJECT_IMAGE);
}

CUresult image_open(const void *code, Context *context, Image **opened) {
    if (!code)
        return CUDA_ERROR_INVALID_VALUE;
    if (!is_ours(code))
        return refuse_foreign(code);
    Image *image = claim(sizeof *image);
    image->references = 1;
    if (!load(image, code, size_of(code))) {
        image_drop(image);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    object_open(&image->object, OBJECT_IMAGE, context);
    read_symbols(image, code);
    *opened = image;
    return CUDA_SUCCESS;
}

void image_drop(Image *image) {
    if (--image->references)
        return;
    while (image->kernels) {
        Kernel *kernel = image->kernels;
        image->kernels = kernel->next;
        free(kernel->name);
        free(kernel);
    }
    while (image->variables) {
        Variable *variable = image->variables;
        image->variables = variable->next;
        free(variable->name);
        free(variable);
    }
    if (image->loaded) {
        pthread_mutex_unlock(&lock); /* destructors as well */
        dlclose(image->loaded);
        pthread_mutex_lock(&lock);
    }
    if (image->file >= 0)
        close(image->file);
    free(image);
}

void image_close(Image *image) {
    object_close(&image->object);
    for (Kernel *kernel = image->kernels; kernel; kernel = kernel->next)
        object_close(&kernel->object);
    for (Variable *variable = image->variables; variable; variable = variable->next)
        if (variable->allocation)
            allocation_end(variable->allocation);
    image_drop(image);
}

Kernel *image_kernel(const Image *image, const char *name) {
    for (Kernel *kernel = image->kernels; kernel; kernel = kernel->next)
        if (!strcmp(kernel->name, name))
            return kernel;
    return NULL;
}

/* A variable has one copy for all devices, and its address is of the device that asked first. */
CUresult image_variable(Image *image, const char *name, CUdeviceptr *address, size_t *size) {
    Variable *variable = image->variables;
    while (variable && strcmp(variable->name, name))
        variable = variable->next;
    if (!variable)
        return CUDA_ERROR_NOT_FOUND;
    if (!variable->allocation) {
        Context *context;
        CUresult result = context_current(&context);
        if (result)
            return result;
        Allocation *allocation = claim(sizeof *allocation);
        uintptr_t start = range_take(context->device->ordinal, variable->size, PAGE);
        *allocation = (Allocation){.address = start,
                                   .size = variable->size,
                                   .bytes = (uintptr_t)variable->bytes,
                                   .block = start,
                                   .block_size = round_up(variable->size, PAGE),
                                   .place = PLACE_GLOBAL,
                                   .device = context->device};
        allocation_add(allocation);
        variable->allocation = allocation;
    }
    if (address)
        *address = variable->allocation->address;
    if (size)
        *size = variable->size;
    return CUDA_SUCCESS;
}

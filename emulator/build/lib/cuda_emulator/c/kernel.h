/* Kernel images, kernels and their launches. */
#ifndef EMULATOR_KERNEL_H
#define EMULATOR_KERNEL_H

#include "object.h"
#include "work.h"

typedef struct Image Image;

typedef struct Kernel {
    Object object;
    Image *image;
    char *name;
    EmulatorLaunch launch;
    const int *params; /* how many, then the size of each; negative: a device pointer */
    int attributes[CU_FUNC_ATTRIBUTE_MAX];
    struct Kernel *next; /* of the image */
} Kernel;

typedef struct Variable {
    char *name;
    void *bytes;
    size_t size;
    Allocation *allocation; /* its device address; NULL: nobody has asked for it */
    struct Variable *next;
} Variable;

struct Image {
    Object object; /* of no context: a library; of one: a module */
    int references; /* the client's, and one of each launch that is not done */
    int file;
    void *loaded;
    Kernel *kernels;
    Variable *variables;
};

Image *image_find(const void *handle);
void image_close(Image *image);
void image_drop(Image *image);

/* The offset in a parameter buffer at which the i-th parameter stands. */
size_t param_offset(const Kernel *kernel, int i);
size_t param_size(const Kernel *kernel, int i);

CUresult launch_run(const Launch *launch, Context *context);
void launch_keep(const Launch *launch);
void launch_drop(const Launch *launch);

/* What a launch call describes; on success the caller owns a reference to the launch. `context`: where it will run, for
 * checks. */
CUresult launch_new(CUfunction function, const EmulatorShape *shape, void **params, void **extra, Context *context,
                    Launch *launch);

#endif

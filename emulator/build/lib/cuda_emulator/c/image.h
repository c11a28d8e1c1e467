#ifndef EMULATOR_IMAGE_H
#define EMULATOR_IMAGE_H

#include "context.h"
#include "kernel.h"

/* Loads an image, for a context (a module) or for none (a library). */
CUresult image_open(const void *code, Context *context, Image **image);

Kernel *image_kernel(const Image *image, const char *name);
CUresult image_variable(Image *image, const char *name, CUdeviceptr *address, size_t *size);

#endif

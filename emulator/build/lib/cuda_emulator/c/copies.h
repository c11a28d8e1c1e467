#ifndef EMULATOR_COPIES_H
#define EMULATOR_COPIES_H

#include "stream.h"

Copy copy_of_bytes(uintptr_t target, uintptr_t source, size_t size);
CUresult copy_check(const Copy *copy);
CUresult copy_submit(CUstream stream, Copy copy, bool asynchronous);

/* What is wrong with a fill, made by the context. */
CUresult fill_check(const Fill *fill, const Context *context);

/* The box that a description means; an error for arrays, which are not emulated. */
CUresult copy_of_box(const CUDA_MEMCPY3D *box, Copy *copy);

#endif

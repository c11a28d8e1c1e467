/* cuda.h with every symbol that the library exports, old versions and per-thread-default-stream forms included. */
#ifndef EMULATOR_CUDA_API_H
#define EMULATOR_CUDA_API_H

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

#if CUDA_VERSION < 13000
#error "the CUDA driver emulator needs cuda.h of CUDA 13.0 or newer (PyPI: nvidia-cuda-runtime)"
#endif

#endif

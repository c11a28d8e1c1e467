/* What a kernel image for the emulator contains. An image is a shared object of the host. A kernel K is two symbols:
 *
 *     const int K__params[] = {n, size_0, ..., size_n-1};     a negative size marks a device pointer (8 bytes)
 *     void K__launch(void **params, const EmulatorShape *shape);
 *
 * K__launch runs every block and thread of the grid; params[i] points to the i-th value, device pointers already
 * replaced by addresses that the CPU can use. A global variable V is two symbols as well: V itself, and
 * `const size_t V__global = sizeof V;`. */
#ifndef EMULATOR_KERNEL_ABI_H
#define EMULATOR_KERNEL_ABI_H

#include <stddef.h>

typedef struct EmulatorShape {
    unsigned grid[3];
    unsigned block[3];
    size_t shared_bytes;
} EmulatorShape;

typedef void (*EmulatorLaunch)(void **params, const EmulatorShape *shape);

#endif

#ifndef EMULATOR_FAULTS_H
#define EMULATOR_FAULTS_H

#include "emulator.h"

/* Replaces all faults; 0, or 1 + the position of the first item that cannot be read (then none is set). */
size_t faults_set(const char *text);

/* The fault that this call, made now with a context of `device` current (-1: none), is to fail with. */
CUresult fault_of_call(const char *name, int device, bool *sticky);

/* The fault that the operation submitted now ("kernel", "copy", ...) is to fail with when its turn comes. */
CUresult fault_of_work(const char *kind, int device);

#endif

#ifndef EMULATOR_GUARD_H
#define EMULATOR_GUARD_H

#include "emulator.h"

/* Makes sure that faults come to us; needs the lock. */
void guard_install(void);

/* Calls run(data); false if it was ended by a fault (SIGSEGV, SIGBUS, SIGFPE, SIGILL), whose address is then in
 * `address`. */
bool guarded(void (*run)(const void *data), const void *data, uintptr_t *address);

#endif

/* What the libraries on top of the driver that belong to the emulator have told it: their calls and what they keep. */
#ifndef EMULATOR_LIBRARY_CALLS_H
#define EMULATOR_LIBRARY_CALLS_H

#include "emulator.h"

/* How often each call was made, by its name; under the lock. */
void library_calls_visit(void (*visit)(const char *name, uint64_t count, void *data), void *data);

/* How many objects of each kind are alive; under the lock. */
void library_objects_visit(void (*visit)(const char *name, uint64_t count, void *data), void *data);

#endif

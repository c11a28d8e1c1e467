#ifndef EMULATOR_TRACE_H
#define EMULATOR_TRACE_H

#include "emulator.h"

enum { MAX_NOTES = 6 };

typedef struct Note {
    const char *key;
    uint64_t value;
} Note;

/* `path` may be NULL: nothing is traced. */
void trace_open(const char *path);
bool trace_is_on(void);

void trace_call(const char *name, uint64_t start, CUresult result, int device, const Note *notes, int n_notes);
void trace_operation(const char *kind, const char *name, uint64_t stream, int device, uint64_t queued, uint64_t start,
                     uint64_t end, uint64_t bytes, CUresult result);

#endif

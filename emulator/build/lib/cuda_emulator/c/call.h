/* What stands around every call of the API, for the generated wrappers (calls.c) and for those who note something in
 * the trace. */
#ifndef EMULATOR_CALL_H
#define EMULATOR_CALL_H

#include "emulator.h"

/* Takes the lock. What it returns instead of CUDA_SUCCESS is the answer: the implementation must not be called then.
 * `per_thread`: NULL as a stream means the thread's own default stream. */
CUresult call_begin(int index, bool per_thread);

/* Gives the lock back; returns `result`. */
CUresult call_end(CUresult result);

/* The answer of a call that has no implementation. */
CUresult call_missing(void);

bool call_is_per_thread(void);
const char *call_name(void);

/* How often a call was made. */
uint64_t call_count(int index);

/* Adds a number to the trace line of the call that this thread is in. */
void call_note(const char *key, uint64_t value);

typedef struct Proc {
    const char *name;
    int version;
    int flags;
    void *function;
} Proc;

typedef struct ErrorName {
    CUresult code;
    const char *name;
    const char *text;
} ErrorName;

extern const Proc procs[];
extern const int n_procs;
extern const ErrorName error_names[];
extern const int n_error_names;
extern const char *const call_names[];
extern const int n_calls;

#endif

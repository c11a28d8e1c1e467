/* What every file of the emulator may use: settings, the lock, time and messages. */
#ifndef EMULATOR_H
#define EMULATOR_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_api.h"

#include "calls.h"

enum { MAX_DEVICES = 16 };

typedef struct Settings {
    int devices;
    size_t memory[MAX_DEVICES]; /* bytes */
    uint32_t peers[MAX_DEVICES]; /* bit j: the device may access memory of device j */
    uint64_t seed;
    unsigned jitter_us;
    int poison; /* a byte, or -1: off */
    size_t red_zone; /* bytes */
    int version;
    int compute_major, compute_minor;
    uint64_t timeout_ns;
} Settings;

extern Settings settings;

/* Every record of the emulator belongs to this lock; call.c says when it is held. */
extern pthread_mutex_t lock;

uint64_t now_ns(void);
struct timespec timespec_of(uint64_t ns);
void cond_init(pthread_cond_t *cond); /* timed waits on it are in the time of now_ns */

/* A number below `bound`, the same for the same seed, lane and count. */
uint64_t seeded_number(uint64_t lane, uint64_t count, uint64_t bound);

/* The jitter: sleeps for a seeded time up to that of the settings. */
void delay(uint64_t lane, uint64_t count);

/* One line on stderr: "cuda emulator: ...". */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *error_name(CUresult code);

/* Memory of the emulator itself. It never returns NULL: without memory for its own records it aborts with a message. */
void *claim(size_t size);
void *claim_copy(const void *source, size_t size);

static inline size_t round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

#endif

/* Time, messages, memory of the emulator itself, and numbers that a seed decides. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "call.h"
#include "emulator.h"

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct timespec timespec_of(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

void cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t seeded_number(uint64_t lane, uint64_t count, uint64_t bound) {
    uint64_t x = mix(settings.seed + 0x9e3779b97f4a7c15u * (lane + 1));
    return mix(x + 0x9e3779b97f4a7c15u * (count + 1)) % bound;
}

void delay(uint64_t lane, uint64_t count) {
    if (!settings.jitter_us)
        return;
    struct timespec time = timespec_of(seeded_number(lane, count, settings.jitter_us + 1u) * 1000);
    clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

void say(const char *format, ...) {
    char line[600] = "cuda emulator: ";
    size_t start = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line + start, sizeof line - start - 1, format, arguments);
    va_end(arguments);
    size_t length = start + (size_t)(n < 0 ? 0 : n);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length] = '\n';
    /* One write, so that lines of several threads and processes do not mix. */
    if (write(STDERR_FILENO, line, length + 1) < 0)
        return;
}

const char *error_name(CUresult code) {
    for (int i = 0; i < n_error_names; i++)
        if (error_names[i].code == code)
            return error_names[i].name;
    return "an unknown error";
}

void *claim(size_t size) {
    void *memory = calloc(1, size ? size : 1);
    if (!memory) {
        say("no memory left for the emulator's own records (%zu bytes)", size);
        abort();
    }
    return memory;
}

void *claim_copy(const void *source, size_t size) {
    void *memory = claim(size);
    if (size)
        memcpy(memory, source, size);
    return memory;
}
